//! What another tool left behind is imported when the server first sees it, and never again (V41).

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use backstay_testkit::daemon::wait_until;
use backstay_testkit::s3::{BUCKET, Fault, S3Server};
use serde_json::Value;

use crate::imports::{dump, text, with_orders};
use crate::serve::{Serving, jobs, set_clock, states};
use crate::shell::Shell;

fn log(shell: &Shell) -> String {
    std::fs::read_to_string(shell.path("log")).unwrap_or_default()
}

fn trouble(shell: &Shell) -> String {
    shell.json(&["status"])[0]["troubles"].to_string()
}

/// Writes a tar with one file.
fn tar(dir: &Path, name: &str, content: &str) {
    std::fs::create_dir_all(dir).unwrap();
    let file = dir.join("a.txt");
    std::fs::write(&file, content).unwrap();
    let mut command = std::process::Command::new("tar");
    command.arg("-cf").arg(dir.join(name)).arg("-C").arg(dir).arg("a.txt");
    assert!(command.status().unwrap().success());
    std::fs::remove_file(file).unwrap();
}

#[test]
fn directory_of_vectorflow_is_imported_once_by_the_first_server_that_sees_it() {
    let (server, shell) = with_orders();
    let before = server.data_digest("shop");
    let old = shell.path("vectorflow");
    std::fs::create_dir(&old).unwrap();
    for name in ["backup-2026-03-08T120000Z.dump", "backup-2026-03-09T120000Z.dump"] {
        dump(&server, &shell, &format!("vectorflow/{name}"), &["-Fc"]);
        server.sql("shop", "INSERT INTO notes VALUES (2)");
    }
    let whole = std::fs::read(old.join("backup-2026-03-09T120000Z.dump")).unwrap();
    std::fs::write(old.join("backup-2026-03-10T120000Z.dump"), &whole[..whole.len() / 2]).unwrap();
    let living = server.data_digest("shop");
    shell.edit_config("[sources.db]", &format!("[sources.db]\nimport_from = '{}'", old.display()));
    assert!(trouble(&shell).contains("`backstay serve` does it"), "{}", trouble(&shell));
    let serving = Serving::start(&shell);
    wait_until("the import has ended", || states(&shell) == ["incomplete"]);
    let job = &jobs(&shell)[0];
    assert_eq!(job["kind"], "import");
    let error = job["error"].as_str().unwrap();
    assert!(error.contains("2 imported; 1 cannot be imported"), "{error}");
    assert!(error.contains("2026-03-10T120000Z"), "{error}");
    assert!(trouble(&shell).contains("2026-03-10T120000Z"), "{}", trouble(&shell));
    assert_eq!(server.data_digest("shop"), living);
    // The default rules keep a month.
    assert!(job["log"].as_str().unwrap().contains("forget 1 of these"), "{job}");
    serving.end();
    // What comes later is not meant, and what was forgotten stays so.
    std::fs::write(old.join("backup-2026-03-10T120000Z.dump"), &whole).unwrap();
    let backups = shell.json(&["backups", "db"]);
    let ids: Vec<&Value> = backups.as_array().unwrap().iter().map(|backup| &backup["id"]).collect();
    assert_eq!(ids.len(), 2, "{backups}");
    shell.ends(0, &["delete", ids[0].as_str().unwrap(), "--yes"]);
    let scheduled = "keep = { last = 9 }\nschedule = 'every 24h'\nimport_from";
    shell.edit_config("import_from", scheduled);
    let serving = Serving::start(&shell);
    wait_until("the server was at work", || states(&shell) == ["succeeded", "incomplete"]);
    shell.ends(0, &["restore", "db", "--id", ids[1].as_str().unwrap(), "--yes"]);
    assert_eq!(server.data_digest("shop"), before);
    serving.end();
    let imports = jobs(&shell).into_iter().filter(|job| job["kind"] == "import").count();
    assert_eq!(imports, 1);
    // A person does it again, for that directory or another.
    shell.ends(0, &["import", "db", text(&old)]);
    assert_eq!(trouble(&shell), "[]");
}

#[test]
fn import_that_meets_an_outage_goes_on_later_where_it_was() {
    let (bucket, shell) = (S3Server::start().unwrap(), Shell::bare());
    let old = shell.path("old");
    for (name, content) in [("2026-03-08T120000Z.tar", "one"), ("2026-03-09T120000Z.tar", "two")] {
        tar(&old, name, content);
    }
    shell.set_config(format!(
        "[storages.main]\nprovider = 's3'\nbucket = '{BUCKET}'\nendpoint = '{}'\n\n\
         [sources.app]\nkind = 'files'\npath = '{}'\nstorage = 'main'\nimport_from = '{}'\n",
        bucket.endpoint,
        shell.path("app").display(),
        old.display(),
    ));
    let is_away = Arc::new(AtomicBool::new(false));
    let away = is_away.clone();
    // Once the first is there the storage takes nothing any more.
    bucket.script(move |call| {
        if call.path.contains("20260309") && call.method == "PUT" {
            away.store(true, Ordering::SeqCst);
        }
        match away.load(Ordering::SeqCst) {
            true => Fault::Refuse(503, "ServiceUnavailable"),
            false => Fault::Pass,
        }
    });
    let _serving = Serving::start(&shell);
    wait_until("it waits for its next try", || states(&shell) == ["queued", "failed"]);
    assert!(is_away.load(Ordering::SeqCst));
    bucket.script(|_| Fault::Pass);
    set_clock(&shell, 61);
    wait_until("the rest is imported", || states(&shell) == ["succeeded", "failed"]);
    let said = jobs(&shell)[0]["log"].to_string();
    assert!(said.contains("1 imported; 1 were imported before"), "{said}");
    let backups = shell.json(&["backups", "app"]);
    let times: Vec<&str> =
        backups.as_array().unwrap().iter().map(|b| b["started_at"].as_str().unwrap()).collect();
    assert_eq!(times.len(), 2, "{backups}");
    shell.ends(0, &["restore", "app", "--at", "2026-03-08T13:00:00Z", "--yes"]);
    assert_eq!(std::fs::read_to_string(shell.path("app/a.txt")).unwrap(), "one");
}

#[test]
fn what_cannot_be_imported_is_told_and_keeps_nothing_else_from_being_done() {
    let shell =
        crate::serve::with_program("schedule = 'every 24h'\nimport_from = '/no/such/place'");
    let _serving = Serving::start(&shell);
    wait_until("the backup", || states(&shell) == ["succeeded"]);
    assert!(log(&shell).contains("there is no directory /no/such/place"), "{}", log(&shell));
    assert!(trouble(&shell).contains("was not imported yet"), "{}", trouble(&shell));
    let other = Shell::bare();
    other.set_config(
        "[storages.main]\nprovider = 'local'\npath = '/x'\n\n[sources.a]\nkind = 'files'\npath = '/a'\nstorage = 'main'\n\
         worker = 'w'\nimport_from = '/b'\n",
    );
    let error = other.complains(2, &["config", "check"]);
    assert!(error.contains("import_from") && error.contains("the server itself reads"), "{error}");
    other.edit_config("worker = 'w'\nimport_from = '/b'", "import_from = 'b'");
    let error = other.complains(2, &["config", "check"]);
    assert!(error.contains("found `b`, expected an absolute path"), "{error}");
}

#[test]
fn dumps_in_folders_of_a_folder_are_told_for_they_are_not_imported() {
    let shell = Shell::with_tree("schedule = 'every 24h'");
    let old = shell.path("old");
    tar(&old.join("daily"), "2026-03-08T120000Z.tar", "one");
    shell.edit_config(
        "[sources.shop]",
        &format!("[sources.shop]\nimport_from = '{}'", old.display()),
    );
    let _serving = Serving::start(&shell);
    let ended = || {
        jobs(&shell).into_iter().find(|job| job["kind"] == "import" && job["error"] != Value::Null)
    };
    wait_until("the import has ended", || ended().is_some());
    let job = ended().unwrap();
    assert_eq!(job["state"], "incomplete");
    assert!(job["error"].to_string().contains("0 imported; 1 skipped"), "{job}");
    assert!(trouble(&shell).contains("daily"), "{}", trouble(&shell));
}
