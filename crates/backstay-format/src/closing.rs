//! JSON files that end in a digest of all their bytes before it: no canonical form is needed, and none can be got wrong.

/// Hexadecimal digits of a digest of 32 bytes.
const DIGITS: usize = 64;

/// Ends a JSON document of a struct with one more member.
pub(crate) fn close(signed: &str, member: &str, digest: &[u8]) -> Vec<u8> {
    format!("{signed}{}{}\"\n}}\n", opening(member), hex::encode(digest)).into_bytes()
}

/// Returns what a closed file's digest is made of: pretty JSON of a struct without its last brace.
pub(crate) fn signed_text(value: &impl serde::Serialize) -> String {
    let text = serde_json::to_string_pretty(value).expect("plain values serialise");
    text.strip_suffix("\n}").expect("pretty JSON of a struct ends so").to_owned()
}

/// Takes a closed file apart: the bytes before the last member, and its digest.
pub(crate) fn split<'a>(text: &'a str, member: &str) -> Result<(&'a str, Vec<u8>), String> {
    let opening = opening(member);
    let body =
        text.strip_suffix("\"\n}\n").ok_or_else(|| "it does not end as such a file".to_owned())?;
    let at = body.rfind(&opening).ok_or_else(|| format!("it has no {member} at its end"))?;
    let (signed, rest) = body.split_at(at);
    let digits = rest.get(opening.len()..).unwrap_or_default();
    let digest = hex::decode(digits).ok().filter(|_| digits.len() == DIGITS);
    Ok((signed, digest.ok_or_else(|| format!("its {member} has the wrong form"))?))
}

/// Returns the document without the digest.
pub(crate) fn document(signed: &str) -> String {
    format!("{signed}\n}}")
}

fn opening(member: &str) -> String {
    format!(",\n  \"{member}\": \"")
}
