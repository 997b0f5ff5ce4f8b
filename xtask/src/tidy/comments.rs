//! Rust text without its comments: as much of the grammar as it takes to know a comment from a string.

/// Returns the text without comments. Lines stay where they were.
pub(super) fn without_comments(text: &str) -> String {
    let mut code = String::with_capacity(text.len());
    let mut rest = text;
    while !rest.is_empty() {
        let (token, after) = rest.split_at(token_bytes(rest));
        if token.starts_with("//") || token.starts_with("/*") {
            code.extend(token.chars().filter(|c| *c == '\n'));
        } else {
            code.push_str(token);
        }
        rest = after;
    }
    code
}

/// Returns the length of the comment, string or character that the text begins with, or of the code before the next.
fn token_bytes(text: &str) -> usize {
    let bytes = match text.as_bytes() {
        [b'/', b'/', ..] => text.find('\n'),
        [b'/', b'*', ..] => block_comment_bytes(text),
        [b'"', ..] => string_bytes(text),
        [b'r', b'"' | b'#', ..] => raw_string_bytes(text),
        [b'\'', ..] => character_bytes(text),
        _ => code_bytes(text),
    };
    bytes.unwrap_or(text.len())
}

fn code_bytes(text: &str) -> Option<usize> {
    let mut later = text.char_indices().skip(1);
    later.find(|(_, c)| matches!(c, '/' | '"' | 'r' | '\'')).map(|(at, _)| at)
}

fn block_comment_bytes(text: &str) -> Option<usize> {
    let mut depth = 0_usize;
    let mut at = 0;
    loop {
        let rest = text.get(at..)?;
        if rest.starts_with("/*") {
            depth += 1;
            at += 2;
        } else if rest.starts_with("*/") {
            depth -= 1;
            at += 2;
        } else {
            at += rest.chars().next()?.len_utf8();
        }
        if depth == 0 {
            return Some(at);
        }
    }
}

fn string_bytes(text: &str) -> Option<usize> {
    let mut is_escaped = false;
    let mut later = text.char_indices().skip(1);
    let end = later.find(|(_, c)| {
        let ends = *c == '"' && !is_escaped;
        is_escaped = *c == '\\' && !is_escaped;
        ends
    });
    end.map(|(at, _)| at + 1)
}

/// The text may also begin with a name like `r#type`, which is code.
fn raw_string_bytes(text: &str) -> Option<usize> {
    let hashes = text.bytes().skip(1).take_while(|byte| *byte == b'#').count();
    let opening = 1 + hashes + 1;
    if text.as_bytes().get(1 + hashes) != Some(&b'"') {
        return Some(1 + hashes);
    }
    let closing = format!("\"{}", "#".repeat(hashes));
    text.get(opening..)?.find(&closing).map(|at| opening + at + closing.len())
}

/// The text may also begin with a lifetime, which is code.
fn character_bytes(text: &str) -> Option<usize> {
    let mut later = text.char_indices().skip(1);
    let (_, first) = later.next()?;
    let (at, second) = later.next()?;
    if first == '\\' {
        return text
            .get(at + second.len_utf8()..)?
            .find('\'')
            .map(|end| at + second.len_utf8() + end + 1);
    }
    Some(if second == '\'' { at + 1 } else { 1 })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn comments_go_and_all_else_stays_on_its_line() {
        for (text, code) in [
            ("a // b\nc", "a \nc"),
            ("a /* b /* c */ d\n */ e", "a \n e"),
            ("\"http://x\" + y // z", "\"http://x\" + y "),
            ("\"a \\\" // b\" // c", "\"a \\\" // b\" "),
            ("\"a \\\\\" // c", "\"a \\\\\" "),
            ("\"two\nlines // here\" // c", "\"two\nlines // here\" "),
            ("br#\"a \" // b\"# // c", "br#\"a \" // b\"# "),
            ("r\"\\\" // c", "r\"\\\" "),
            ("r#type // c", "r#type "),
            ("'\"' // c", "'\"' "),
            ("'\\'' // '", "'\\'' "),
            ("b'\\\\' // c", "b'\\\\' "),
            ("&'a str // 'b'", "&'a str "),
            ("a / b /// c", "a / b "),
            ("/* never ended", ""),
            ("\"never ended // b", "\"never ended // b"),
            ("ü 'ü' // ü", "ü 'ü' "),
            ("'", "'"),
        ] {
            assert_eq!(without_comments(text), code, "{text}");
        }
    }
}
