//! Rules of the project that no compiler knows: who may use whom, and how large a file may grow.

mod comments;

use std::path::{Path, PathBuf};

use anyhow::{Context as _, ensure};

use self::comments::without_comments;

/// Files of this many lines should be looked at.
const LOOK_AGAIN: usize = 500;
/// Files of this many lines need a reason in their first line: "Long because".
const TOO_LONG: usize = 800;

/// In files below this path, these words must not stand.
struct Rule {
    below: &'static str,
    /// A path below it where they may; empty means nowhere.
    except: &'static str,
    forbidden: &'static [&'static str],
}

impl Rule {
    fn is_for(&self, file: &str) -> bool {
        let is_excepted = !self.except.is_empty() && file.starts_with(self.except);
        file.starts_with(self.below) && !is_excepted
    }
}

const RULES: &[Rule] = &[
    // The format is pure: no I/O, no clock, no randomness of its own.
    Rule {
        below: "crates/backstay-format/src/",
        except: "",
        forbidden: &["tokio", "std::fs", "Timestamp::now", "rand::"],
    },
    // Sources and vault do not know each other: named streams pass between them.
    Rule {
        below: "crates/backstay-engine/src/source/",
        except: "",
        forbidden: &["crate::vault", "crate::store", "crate::pipeline"],
    },
    Rule {
        below: "crates/backstay-engine/src/store/",
        except: "",
        forbidden: &["crate::vault", "crate::source", "crate::pipeline"],
    },
    Rule {
        below: "crates/backstay-engine/src/pipeline.rs",
        except: "",
        forbidden: &["crate::vault", "crate::store", "crate::source"],
    },
    Rule {
        below: "crates/backstay-engine/src/part.rs",
        except: "",
        forbidden: &["crate::vault", "crate::store", "crate::source", "crate::pipeline"],
    },
    Rule { below: "crates/backstay-engine/src/vault/", except: "", forbidden: &["crate::source"] },
    // Only the store knows the client library, so only the store knows providers.
    Rule {
        below: "crates/backstay-engine/src/",
        except: "crates/backstay-engine/src/store/",
        forbidden: &["object_store", "reqsign", "reqwest"],
    },
    // The engine does the work and knows no job, row or page.
    Rule {
        below: "crates/backstay-engine/src/",
        except: "",
        forbidden: &["backstay_control", "sea_orm", "clap"],
    },
    // A test that is switched off proves nothing, and an exception needs a reason.
    Rule { below: "", except: "", forbidden: &[concat!("#[", "ignore"), concat!("#[", "allow(")] },
];

/// Says what is broken, and fails if anything is.
pub(crate) fn tidy(root: &Path) -> anyhow::Result<()> {
    let mut broken = Vec::new();
    let mut files = Vec::new();
    for below in ["crates", "xtask"] {
        rust_files(&root.join(below), &mut files)?;
    }
    ensure!(
        files.len() > 20,
        "only {} Rust files were found: tidy looks in the wrong place",
        files.len()
    );
    for file in &files {
        let text = std::fs::read_to_string(file)
            .with_context(|| format!("cannot read {}", file.display()))?;
        let name = file.strip_prefix(root)?.display().to_string();
        broken.extend(faults(&name, &text));
        if !is_reachable(file) {
            broken.push(format!("{name}: no `mod` names this file, so nothing in it is compiled"));
        }
    }
    broken.extend(forgotten_vaults(&root.join("testdata"), &files)?);
    for line in &broken {
        println!("tidy: {line}");
    }
    ensure!(broken.is_empty(), "{} rules are broken", broken.len());
    println!("tidy: {} files are in order", files.len());
    Ok(())
}

/// Finds golden vaults that no test names: a format that nobody reads any more is how old backups die.
fn forgotten_vaults(testdata: &Path, files: &[PathBuf]) -> anyhow::Result<Vec<String>> {
    let mut tests = String::new();
    for file in
        files.iter().filter(|file| file.components().any(|part| part.as_os_str() == "tests"))
    {
        tests.push_str(&without_comments(&std::fs::read_to_string(file)?));
    }
    let mut forgotten = Vec::new();
    for entry in std::fs::read_dir(testdata).context("testdata with its golden vaults is gone")? {
        let name = entry?.file_name().to_string_lossy().into_owned();
        if name.starts_with("vault-") && !tests.contains(&format!("\"{name}\"")) {
            forgotten.push(format!("testdata/{name}: no test opens this golden vault"));
        }
    }
    Ok(forgotten)
}

fn faults(name: &str, text: &str) -> Vec<String> {
    let mut faults = Vec::new();
    let code = without_comments(text);
    for rule in RULES.iter().filter(|rule| rule.is_for(name)) {
        for (number, line) in code.lines().enumerate() {
            for word in rule.forbidden.iter().filter(|word| line.contains(**word)) {
                faults.push(format!("{name}:{}: {word} must not be used here", number + 1));
            }
        }
    }
    let lines = text.lines().count();
    if lines > TOO_LONG && !text.lines().next().is_some_and(|first| first.contains("Long because"))
    {
        faults.push(format!("{name}: {lines} lines; what is it really about?"));
    } else if lines > LOOK_AGAIN {
        println!("tidy: {name} has {lines} lines; look again");
    }
    faults
}

/// Whether the module above names this file.
fn is_reachable(file: &Path) -> bool {
    let stem = file.file_stem().map(|stem| stem.to_string_lossy().into_owned()).unwrap_or_default();
    let (Some(parent), name) = (file.parent(), stem.as_str()) else { return false };
    // Each file of these folders is a program of its own.
    let is_program = parent.ends_with("src/bin") || parent.ends_with("benches");
    if matches!(name, "main" | "lib" | "build") || is_program {
        return true;
    }
    let (module, above) = if name == "mod" {
        (
            parent.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default(),
            parent.parent(),
        )
    } else {
        (stem.clone(), Some(parent))
    };
    let Some(above) = above else { return false };
    let mut candidates: Vec<PathBuf> =
        ["mod.rs", "lib.rs", "main.rs"].iter().map(|f| above.join(f)).collect();
    candidates.push(above.with_extension("rs"));
    candidates
        .iter()
        .any(|path| std::fs::read_to_string(path).is_ok_and(|text| declares(&text, &module)))
}

fn declares(text: &str, module: &str) -> bool {
    let declaration = format!("mod {module};");
    let is_visibility = |before: &str| before.is_empty() || before.starts_with("pub");
    without_comments(text)
        .lines()
        .any(|line| line.trim().strip_suffix(&declaration).is_some_and(is_visibility))
}

fn rust_files(directory: &Path, files: &mut Vec<PathBuf>) -> anyhow::Result<()> {
    for entry in std::fs::read_dir(directory)
        .with_context(|| format!("cannot list {}", directory.display()))?
    {
        let path = entry?.path();
        if path.is_dir() {
            rust_files(&path, files)?;
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn golden_vault_that_no_test_names_is_forgotten() {
        let dir = std::env::temp_dir().join(format!("backstay-tidy-{}", std::process::id()));
        let (known, unknown) = (dir.join("testdata/vault-1"), dir.join("testdata/vault-2"));
        for path in [&known, &unknown, &dir.join("tests")] {
            std::fs::create_dir_all(path).expect("a temporary directory can be made");
        }
        let test = dir.join("tests/golden.rs");
        std::fs::write(&test, "open(\"vault-1\"); // \"vault-2\"").expect("it can be written");
        let forgotten = forgotten_vaults(&dir.join("testdata"), &[test]).expect("it can be read");
        std::fs::remove_dir_all(&dir).expect("it can be removed");
        assert_eq!(forgotten, ["testdata/vault-2: no test opens this golden vault"]);
    }

    #[test]
    fn each_rule_can_be_broken() {
        for rule in RULES {
            for word in rule.forbidden {
                let name = if rule.below.ends_with(".rs") {
                    rule.below.to_owned()
                } else {
                    format!("{}x.rs", rule.below)
                };
                assert!(!faults(&name, &format!("{word} something")).is_empty(), "{word}");
                assert!(faults(&name, &format!("// {word} in a comment")).is_empty(), "{word}");
                let behind_url = format!("let url = \"http://x\"; {word} something");
                assert!(!faults(&name, &behind_url).is_empty(), "{word}");
            }
        }
        let only_in_store = "use object_store::ObjectStore;";
        assert!(!faults("crates/backstay-engine/src/backup.rs", only_in_store).is_empty());
        assert!(faults("crates/backstay-engine/src/store/mod.rs", only_in_store).is_empty());
        assert!(!faults("crates/x.rs", &"line\n".repeat(801)).is_empty());
        assert!(
            faults(
                "crates/x.rs",
                &format!("//! Long because of tables.\n{}", "line\n".repeat(801))
            )
            .is_empty()
        );
    }
    #[test]
    fn module_counts_as_declared_only_by_code() {
        for text in ["mod x;", "pub mod x; // why", "    pub(crate) mod x;", "#[cfg(test)]\nmod x;"]
        {
            assert!(declares(text, "x"), "{text}");
        }
        for text in [
            "// mod x;",
            "/* mod x; */",
            "mod xx;",
            "mod x { }",
            "let a = \"mod x;\";",
            "/*\nmod x;\n*/",
        ] {
            assert!(!declares(text, "x"), "{text}");
        }
    }
}
