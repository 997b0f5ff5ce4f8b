//! Text of others that a person will see: without what moves a terminal's cursor or turns what stands beside it around, and no
//! longer than is of use.

/// Names, versions, parts.
const SHORT: usize = 100;
/// Errors and lines of logs.
const LONG: usize = 2000;
/// Lines of a log.
const LINES: usize = 200;

/// Returns a name in one line.
pub(crate) fn name(text: &str) -> String {
    cut(text, SHORT)
}

/// Returns a sentence in one line.
pub(crate) fn sentence(text: &str) -> String {
    cut(text, LONG)
}

/// Returns a line, with the spaces that it begins with.
pub(crate) fn line(text: &str) -> String {
    shown(text, LONG).trim_end().to_owned()
}

/// Returns the last lines.
pub(crate) fn lines(text: &str) -> String {
    let lines: Vec<&str> = text.lines().collect();
    let newest = &lines[lines.len().saturating_sub(LINES)..];
    newest.iter().map(|line| cut(line, LONG)).collect::<Vec<_>>().join("\n")
}

fn cut(text: &str, chars: usize) -> String {
    shown(text, chars).trim().to_owned()
}

fn shown(text: &str, chars: usize) -> String {
    text.chars().map(|c| if is_shown(c) { c } else { ' ' }).take(chars).collect()
}

/// Says whether a character only shows itself: line ends and all that Unicode calls `Bidi_Control` do more.
fn is_shown(c: char) -> bool {
    !c.is_control()
        && !matches!(c, '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

#[cfg(test)]
mod tests {
    #[test]
    fn text_of_others_moves_no_cursor_and_has_an_end() {
        assert_eq!(super::name("db1\u{1b}[2J\n"), "db1 [2J");
        assert_eq!(super::line("  one\u{7} \n"), "  one");
        assert_eq!(super::name("a\u{202e}b\u{2066}c\u{2028}d é\u{5d0}"), "a b c d é\u{5d0}");
        assert_eq!(super::sentence(&"x".repeat(1 << 20)).len(), 2000);
        let log = format!("{}last\r\u{7}", "line\n".repeat(500));
        let kept = super::lines(&log);
        assert_eq!((kept.lines().count(), kept.lines().last()), (200, Some("last")));
    }
}
