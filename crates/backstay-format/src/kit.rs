//! The recovery kit: a text that a person prints or keeps offline, enough with the vaults to get everything back.
//!
//! The kit holds the recovery key, wrapped under a passphrase, in lines that can be typed by hand: Crockford's base32
//! in groups of four, each line closed by a checksum of its own. The data keys of the day stand below it, wrapped under
//! the recovery key, for the case that a vault's key slots are damaged; later keys are found in the slots.

use std::fmt::Write as _;

use argon2::{Algorithm, Argon2, Params, Version};
use jiff::Timestamp;
use zeroize::Zeroizing;

use crate::key::{WRAPPED_BYTES, unwrap_bytes, wrap_bytes};
use crate::{DataKey, KeyError, KeyId, Keyring, RecoveryKey, Sha256};

const BEGIN: &str = "-----BEGIN BACKSTAY RECOVERY KEY-----";
const END: &str = "-----END BACKSTAY RECOVERY KEY-----";
const BEGIN_KEYS: &str = "-----BEGIN BACKSTAY DATA KEYS-----";
const END_KEYS: &str = "-----END BACKSTAY DATA KEYS-----";
/// Version, cost, salt, wrapped recovery key.
const RECOVERY_BYTES: usize = 4 + 16 + WRAPPED_BYTES;
const VERSION: u8 = 1;
/// No I, L, O, U: nothing that a reader can take for something else.
const ALPHABET: &[u8; 32] = b"0123456789ABCDEFGHJKMNPQRSTVWXYZ";
const LINE_CHARS: usize = 32;
/// Larger files are not kits.
pub(crate) const MAX_KIT_BYTES: usize = 1 << 20;

/// What guessing a passphrase costs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KitCost {
    /// Memory: 2 to this power, in KiB.
    memory_log2: u8,
    passes: u8,
}

impl KitCost {
    /// 64 MiB, three passes: about half a second on a small server.
    pub const STANDARD: Self = Self { memory_log2: 16, passes: 3 };
    /// For tests only: protects nothing.
    pub const FOR_TESTS: Self = Self { memory_log2: 3, passes: 1 };
}

/// A vault that the kit's reader should know of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KitVault {
    /// The storage's name in the configuration.
    pub name: String,
    /// Where it is: `s3://bucket/prefix` or a path.
    pub location: String,
    /// What else is needed to reach it: endpoint, region, addressing. No secrets.
    pub settings: Vec<(String, String)>,
}

/// What a kit's text holds.
#[derive(Debug, Clone)]
pub struct Kit {
    sealed: Vec<u8>,
    data_keys: Vec<(KeyId, Timestamp, Vec<u8>)>,
}

/// Why a kit could not be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum KitError {
    /// The text holds no kit.
    #[error("this is not a recovery kit: {finding}")]
    NotAKit {
        /// What is missing.
        finding: &'static str,
    },
    /// A line was copied wrongly.
    #[error("line {line} of the kit has a mistake: {text:?}; compare it with the paper")]
    Mistyped {
        /// Which line of the text, from 1.
        line: usize,
        /// The line.
        text: String,
    },
    /// Made by a newer program.
    #[error("the kit has version {found}, this program reads {VERSION}; use a newer backstay")]
    Newer {
        /// The version found.
        found: u8,
    },
    /// The passphrase is not the kit's, or the kit was altered.
    #[error("the passphrase does not open the kit")]
    WrongPassphrase,
}

impl Kit {
    /// Seals the keyring's recovery key under a passphrase. `random` must be: salt, nonce, and a nonce for each data key.
    pub fn seal(
        keyring: &Keyring,
        passphrase: &str,
        cost: KitCost,
        random: &mut dyn FnMut(&mut [u8]),
    ) -> Result<Self, KeyError> {
        let recovery = keyring.recovery()?;
        let mut salt = [0; 16];
        let mut nonce = [0; 12];
        random(&mut salt);
        random(&mut nonce);
        let mut sealed = vec![VERSION, cost.memory_log2, cost.passes, 1];
        sealed.extend_from_slice(&salt);
        let under = stretch(passphrase, &sealed).expect("the costs in this program are legal");
        let wrapped = wrap_bytes(&under, recovery.bytes(), nonce, &sealed);
        sealed.extend_from_slice(&wrapped);
        let data_keys = keyring.entries().iter().map(|entry| {
            let mut nonce = [0; 12];
            random(&mut nonce);
            (entry.id.clone(), entry.created_at, recovery.wrap(&entry.key, nonce))
        });
        Ok(Self { sealed, data_keys: data_keys.collect() })
    }

    /// Opens the kit: the recovery key, and the data keys that were in it.
    pub fn open(&self, passphrase: &str) -> Result<Keyring, KitError> {
        let (head, wrapped) = self.sealed.split_at(RECOVERY_BYTES - WRAPPED_BYTES);
        let under = stretch(passphrase, head)
            .ok_or(KitError::NotAKit { finding: "its cost is out of range" })?;
        let recovery = unwrap_bytes(&under, wrapped, head).ok_or(KitError::WrongPassphrase)?;
        let recovery = RecoveryKey::new(*recovery);
        let mut keyring = Keyring::new(recovery.clone());
        for (id, created_at, wrapped) in &self.data_keys {
            let key: DataKey = recovery
                .unwrap(wrapped, id)
                .map_err(|_| KitError::NotAKit { finding: "one of its data keys does not open" })?;
            keyring.add(key, *created_at);
        }
        Ok(keyring)
    }

    /// Writes the text for a person: where the vaults are, what to do, and the keys.
    pub fn to_text(&self, made_at: Timestamp, host: &str, vaults: &[KitVault]) -> String {
        let mut text = String::new();
        self.write_text(&mut text, made_at, host, vaults)
            .expect("writing to a String does not fail");
        text
    }

    fn write_text(
        &self,
        out: &mut String,
        made_at: Timestamp,
        host: &str,
        vaults: &[KitVault],
    ) -> std::fmt::Result {
        writeln!(out, "BACKSTAY RECOVERY KIT\n")?;
        writeln!(out, "Made {} on {host}.", made_at.strftime("%Y-%m-%d %H:%M UTC"))?;
        writeln!(
            out,
            "Keep it away from the machines that it is for; print it. It is useless without its passphrase,"
        )?;
        writeln!(out, "so keep that somewhere else.\n")?;
        writeln!(out, "Where the backups are:")?;
        for vault in vaults {
            writeln!(out, "  {}: {}", one_line(&vault.name), one_line(&vault.location))?;
            for (name, value) in &vault.settings {
                writeln!(out, "      {} = {}", one_line(name), one_line(value))?;
            }
        }
        writeln!(out, "\nTo get everything back on any machine:")?;
        writeln!(
            out,
            "  1. Install backstay, and save this text as kit.txt (typed by hand, only the lines from BEGIN to END)."
        )?;
        writeln!(
            out,
            "  2. Have the storage's credentials ready; for S3 in AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY."
        )?;
        for vault in vaults {
            let mut command = format!(
                "     backstay recover --storage {} --kit kit.txt",
                quoted(&vault.location)
            );
            for (name, value) in &vault.settings {
                write!(command, " --{} {}", name.replace('_', "-"), quoted(value))?;
            }
            writeln!(out, "{command}")?;
        }
        writeln!(out, "  3. backstay backups            shows what there is")?;
        writeln!(out, "     backstay verify --all       reads and authenticates every byte")?;
        writeln!(out, "     backstay restore SOURCE     brings the newest good one back\n")?;
        writeln!(out, "{BEGIN}")?;
        write_lines(out, &self.sealed)?;
        writeln!(out, "{END}")?;
        writeln!(out, "{BEGIN_KEYS}")?;
        for (id, created_at, wrapped) in &self.data_keys {
            writeln!(out, "{id} {created_at}")?;
            write_lines(out, wrapped)?;
        }
        writeln!(out, "{END_KEYS}")
    }

    /// Reads a kit's text. Only the lines between the marks matter; the data keys may be missing.
    pub fn parse(text: &str) -> Result<Self, KitError> {
        if text.len() > MAX_KIT_BYTES {
            return Err(KitError::NotAKit { finding: "it is larger than any kit" });
        }
        let block = lines_between(text, BEGIN, END)
            .ok_or(KitError::NotAKit { finding: "it has no block BEGIN BACKSTAY RECOVERY KEY" })?;
        let sealed = read_lines(&block)?;
        match sealed.first() {
            Some(&VERSION) => {}
            Some(&found) if found > VERSION => return Err(KitError::Newer { found }),
            _ => return Err(KitError::NotAKit { finding: "its key block is empty" }),
        }
        if sealed.len() != RECOVERY_BYTES {
            return Err(KitError::NotAKit {
                finding: "its key block has missing or surplus lines",
            });
        }
        let mut data_keys = Vec::new();
        let mut lines =
            lines_between(text, BEGIN_KEYS, END_KEYS).unwrap_or_default().into_iter().peekable();
        while let Some((line, head)) = lines.next() {
            let mistyped = || KitError::Mistyped { line, text: head.clone() };
            let (id, time) = head.split_once(' ').ok_or_else(mistyped)?;
            let (id, time) = id.parse().ok().zip(time.trim().parse().ok()).ok_or_else(mistyped)?;
            let mut wrapped = Vec::new();
            while let Some(next) = lines.next_if(|(_, line)| !line.starts_with('k')) {
                wrapped.push(next);
            }
            data_keys.push((id, time, read_lines(&wrapped)?));
        }
        Ok(Self { sealed, data_keys })
    }
}

fn one_line(text: &str) -> String {
    text.replace(char::is_control, "?")
}

/// Quotes a word for a POSIX shell.
fn quoted(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./:=@".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        return word.to_owned();
    }
    format!("'{}'", one_line(word).replace('\'', "'\\''"))
}

fn stretch(passphrase: &str, head: &[u8]) -> Option<Zeroizing<[u8; 32]>> {
    let (cost, salt) = head.split_first_chunk::<4>()?;
    let [_, memory_log2, passes, lanes] = *cost;
    // Bounded, because a kit comes from outside: at most 1 GiB and 16 passes.
    if !(3..=20).contains(&memory_log2) || !(1..=16).contains(&passes) || lanes != 1 {
        return None;
    }
    let params = Params::new(1 << memory_log2, u32::from(passes), 1, Some(32)).ok()?;
    let mut key = Zeroizing::new([0; 32]);
    // Printed passphrases come back with stray blanks around them.
    Argon2::new(Algorithm::Argon2id, Version::V0x13, params)
        .hash_password_into(passphrase.trim().as_bytes(), salt, key.as_mut())
        .ok()?;
    Some(key)
}

fn write_lines(out: &mut String, bytes: &[u8]) -> std::fmt::Result {
    let digits = encode_base32(bytes);
    for line in digits.as_bytes().chunks(LINE_CHARS) {
        let groups = line.chunks(4).map(|group| String::from_utf8_lossy(group).into_owned());
        writeln!(out, "{} {}", groups.collect::<Vec<_>>().join(" "), checksum(line))?;
    }
    Ok(())
}

/// Returns the two characters that close a line.
fn checksum(digits: &[u8]) -> String {
    let sha = Sha256::of(digits);
    let [a, b, ..] = *sha.as_bytes();
    [a, b].iter().map(|byte| char::from(ALPHABET[usize::from(byte % 32)])).collect()
}

fn read_lines(lines: &[(usize, String)]) -> Result<Vec<u8>, KitError> {
    let mut digits = Vec::new();
    for (line, text) in lines {
        let mistyped = || KitError::Mistyped { line: *line, text: text.clone() };
        let all: Option<Vec<u8>> =
            text.chars().filter(|c| !c.is_whitespace() && *c != '-').map(normal_digit).collect();
        let all =
            all.filter(|all| all.len() > 2 && all.len() <= LINE_CHARS + 2).ok_or_else(mistyped)?;
        let (line_digits, sum) = all.split_at(all.len() - 2);
        if checksum(line_digits).as_bytes() != sum {
            return Err(mistyped());
        }
        digits.extend_from_slice(line_digits);
    }
    Ok(decode_base32(&digits))
}

/// Returns the digit that a hand may have meant.
fn normal_digit(typed: char) -> Option<u8> {
    let upper = match typed.to_ascii_uppercase() {
        'O' => '0',
        'I' | 'L' => '1',
        other => other,
    };
    u8::try_from(upper).ok().filter(|digit| ALPHABET.contains(digit))
}

fn lines_between(text: &str, begin: &str, end: &str) -> Option<Vec<(usize, String)>> {
    let numbered = text.lines().enumerate().map(|(i, line)| (i + 1, line.trim().to_owned()));
    let mut inside = numbered.skip_while(|(_, line)| line != begin).skip(1).peekable();
    inside.peek()?;
    let inside: Vec<_> = inside.collect();
    let stop = inside.iter().position(|(_, line)| line == end)?;
    Some(inside.into_iter().take(stop).filter(|(_, line)| !line.is_empty()).collect())
}

fn encode_base32(bytes: &[u8]) -> String {
    let mut digits = String::new();
    for chunk in bytes.chunks(5) {
        let mut five = [0; 5];
        five[..chunk.len()].copy_from_slice(chunk);
        let bits = five.iter().fold(0_u64, |bits, byte| bits << 8 | u64::from(*byte));
        let count = (chunk.len() * 8).div_ceil(5);
        digits
            .extend((0..count).map(|i| char::from(ALPHABET[(bits >> (35 - 5 * i) & 31) as usize])));
    }
    digits
}

/// Decodes digits of [`ALPHABET`]; left-over bits are dropped.
fn decode_base32(digits: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(digits.len() * 5 / 8);
    let (mut bits, mut count) = (0_u32, 0);
    for digit in digits {
        let value = ALPHABET.iter().position(|d| d == digit).unwrap_or(0);
        bits = bits << 5 | value as u32;
        count += 5;
        if count >= 8 {
            count -= 8;
            bytes.push((bits >> count & 0xff) as u8);
        }
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keyring() -> Keyring {
        let mut ring = Keyring::new(RecoveryKey::new([9; 32]));
        ring.add(DataKey::new([1; 32]), "2026-01-01T00:00:00Z".parse().unwrap());
        ring.add(DataKey::new([2; 32]), "2026-02-01T00:00:00Z".parse().unwrap());
        ring
    }

    fn text() -> String {
        let mut next = 0_u8;
        let mut random = |bytes: &mut [u8]| {
            bytes.fill_with(|| {
                next = next.wrapping_mul(5).wrapping_add(7);
                next
            });
        };
        let kit = Kit::seal(&keyring(), "correct horse", KitCost::FOR_TESTS, &mut random).unwrap();
        let vault = KitVault {
            name: "r2".to_owned(),
            location: "s3://b/it's".to_owned(),
            settings: vec![("endpoint".to_owned(), "http://127.0.0.1:1".to_owned())],
        };
        kit.to_text("2026-03-01T00:00:00Z".parse().unwrap(), "vps1", &[vault])
    }

    #[test]
    fn kit_gives_all_keys_back_and_says_where_and_how() {
        let text = text();
        let ring = Kit::parse(&text).unwrap().open(" correct horse\n").unwrap();
        assert_eq!(
            ring.recovery().unwrap().fingerprint(),
            keyring().recovery().unwrap().fingerprint()
        );
        assert_eq!(ring.newest().unwrap().id, DataKey::new([2; 32]).id());
        assert!(
            text.contains(
                "--storage 's3://b/it'\\''s' --kit kit.txt --endpoint http://127.0.0.1:1"
            ),
            "{text}"
        );
    }

    #[test]
    fn wrong_passphrase_is_said_to_be_that() {
        let opened = Kit::parse(&text()).unwrap().open("wrong");
        assert_eq!(opened.unwrap_err(), KitError::WrongPassphrase);
    }

    #[test]
    fn mistyped_line_is_named_and_lookalikes_are_forgiven() {
        let text = text();
        let at = text.find(BEGIN).unwrap() + BEGIN.len() + 1;
        let line = text[..at].lines().count() + 1;
        let mut bad = text.clone().into_bytes();
        bad[at] = if bad[at] == b'2' { b'3' } else { b'2' };
        let error = Kit::parse(std::str::from_utf8(&bad).unwrap()).unwrap_err();
        assert!(matches!(error, KitError::Mistyped { line: l, .. } if l == line), "{error}");
        let (head, keys) = text.split_at(at);
        let (block, _) = keys.split_once(END).unwrap();
        let typed = block.to_lowercase().replace('0', "o").replace('1', "l").replace(' ', "");
        let by_hand = format!("{head}{typed}{END}\n");
        assert!(Kit::parse(&by_hand).unwrap().open("correct horse").is_ok());
    }

    #[test]
    fn texts_that_are_no_kits_are_refused() {
        for bad in ["", "hello", BEGIN, &format!("{BEGIN}\n{END}\n"), &text().replace(END, "")] {
            assert!(Kit::parse(bad).is_err(), "{bad}");
        }
        let lines: Vec<String> = text().lines().map(str::to_owned).collect();
        let at = lines.iter().position(|line| line == BEGIN).unwrap() + 2;
        let missing: Vec<_> =
            lines.iter().enumerate().filter(|(i, _)| *i != at).map(|(_, l)| l.as_str()).collect();
        assert!(matches!(Kit::parse(&missing.join("\n")), Err(KitError::NotAKit { .. })));
    }

    #[test]
    fn base32_gives_every_length_back() {
        for length in 0..20_u8 {
            let bytes: Vec<u8> = (0..length).map(|i| i.wrapping_mul(77)).collect();
            assert_eq!(decode_base32(encode_base32(&bytes).as_bytes()), bytes);
        }
    }
}
