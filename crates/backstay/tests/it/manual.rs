//! Completions and man pages: for every command, and as the tools that read them take them.

use std::collections::BTreeSet;
use std::process::Command;

use crate::shell::Shell;

/// Returns the commands that the help of a command lists, each with the words before it.
fn commands_of(shell: &Shell, words: &[String]) -> BTreeSet<Vec<String>> {
    let asked: Vec<&str> = words.iter().map(String::as_str).chain(["--help"]).collect();
    let help = shell.ends(0, &asked);
    let listed = help.lines().skip_while(|line| *line != "Commands:").skip(1);
    let mut commands = BTreeSet::new();
    for line in listed.take_while(|line| line.starts_with("  ")) {
        // Lines that go on with an explanation are indented further.
        let name = line[2..].split(' ').next().unwrap();
        if name.is_empty() || name == "help" {
            continue;
        }
        let command: Vec<String> = words.iter().cloned().chain([name.to_owned()]).collect();
        commands.extend(commands_of(shell, &command));
        commands.insert(command);
    }
    commands
}

fn all_commands(shell: &Shell) -> BTreeSet<Vec<String>> {
    let commands = commands_of(shell, &[]);
    for known in [vec!["backup"], vec!["keys", "rotate"]] {
        let known: Vec<String> = known.into_iter().map(str::to_owned).collect();
        assert!(commands.contains(&known), "{commands:?}");
    }
    commands
}

#[test]
fn every_command_has_a_man_page_and_no_page_is_of_another() {
    let shell = Shell::bare();
    shell.ends(0, &["man", "pages/man1"]);
    let pages = shell.path("pages/man1").read_dir().unwrap();
    let found: BTreeSet<String> =
        pages.map(|page| page.unwrap().file_name().into_string().unwrap()).collect();
    let mut expected = BTreeSet::from(["backstay.1".to_owned()]);
    expected
        .extend(all_commands(&shell).iter().map(|words| format!("backstay-{}.1", words.join("-"))));
    assert_eq!(found, expected);
    for page in &found {
        let text = std::fs::read_to_string(shell.path("pages/man1").join(page)).unwrap();
        for section in [".TH ", ".SH NAME", ".SH SYNOPSIS", ".SH DESCRIPTION"] {
            assert!(text.contains(section), "{page} has no {section}");
        }
    }
}

#[test]
fn man_pages_that_cannot_be_written_are_named() {
    let shell = Shell::bare();
    std::fs::write(shell.path("file"), "").unwrap();
    let error = shell.complains(1, &["man", "file"]);
    assert!(error.contains("cannot write man pages into file"), "{error}");
}

#[test]
fn bash_takes_the_completions_and_completes_every_command() {
    let shell = Shell::bare();
    std::fs::write(shell.path("script"), shell.ends(0, &["completions", "bash"])).unwrap();
    let bash = |words: &[&str]| {
        let ended = Command::new("bash").args(words).current_dir(shell.dir.path()).output();
        let ended = ended.unwrap();
        let complaints = String::from_utf8_lossy(&ended.stderr).into_owned();
        assert!(ended.status.success() && complaints.is_empty(), "{complaints}");
        String::from_utf8(ended.stdout).unwrap()
    };
    bash(&["-n", "script"]);
    // What bash does when a user types the words and asks for the next one.
    let ask = r#"source ./script
        COMP_WORDS=(backstay "$@" ""); COMP_CWORD=$(($# + 1))
        _backstay backstay "" "${COMP_WORDS[$#]}"
        printf '%s\n' "${COMPREPLY[@]}""#;
    for command in all_commands(&shell) {
        let (last, before) = command.split_last().unwrap();
        let mut words = vec!["-c", ask, "bash"];
        words.extend(before.iter().map(String::as_str));
        let offered = bash(&words);
        assert!(offered.lines().any(|word| word == last), "{command:?} is not in {offered}");
    }
}

#[test]
fn zsh_and_fish_completions_name_every_command() {
    let shell = Shell::bare();
    for (name, opening) in [("zsh", "#compdef backstay"), ("fish", "# Print an optspec")] {
        let script = shell.ends(0, &["completions", name]);
        assert!(script.starts_with(opening), "{name}: {script}");
        for command in all_commands(&shell) {
            let word = command.last().unwrap();
            assert!(script.contains(word.as_str()), "{name}: {word}");
        }
    }
    assert!(shell.complains(2, &["completions", "cmd.exe"]).contains("possible values"));
}

#[test]
fn completions_that_nobody_reads_are_no_failure() {
    let shell = Shell::bare();
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let ended = shell.command(&["completions", "bash"]).stdout(writer).output().unwrap();
    let complaints = String::from_utf8_lossy(&ended.stderr);
    assert!(ended.status.success() && complaints.is_empty(), "{complaints}");
}
