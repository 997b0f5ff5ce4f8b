//! What a person sees, and what a program reads: progress on standard error, results on standard output.

use std::io::{IsTerminal as _, Write as _};
use std::sync::Mutex;
use std::time::Duration;

use backstay_control::Span;
use backstay_engine::event::{Event, Monitor};
use backstay_format::{Encryption, IndexEntry, Trigger};
use backstay_server::{BackupView, ItemErrorView};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use jiff::{SignedDuration, Timestamp};
use serde::Serialize;
use serde_json::{Value, json};

use crate::cli::Global;

/// Shows events: as a bar on a terminal, as lines elsewhere, as JSON lines if asked.
pub(crate) struct Screen {
    mode: Mode,
    /// The warning that was shown last: a step that is taken for each of many sources says the same each time.
    last_warning: Mutex<String>,
}

enum Mode {
    Quiet,
    Json,
    Lines,
    Bar(Mutex<ProgressBar>),
}

impl Screen {
    pub(crate) fn new(global: &Global) -> Self {
        let mode = if global.json {
            Mode::Json
        } else if global.quiet {
            Mode::Quiet
        } else if std::io::stderr().is_terminal() {
            Mode::Bar(Mutex::new(ProgressBar::hidden()))
        } else {
            Mode::Lines
        };
        Self { mode, last_warning: Mutex::default() }
    }
}

impl Monitor for Screen {
    fn event(&self, event: Event) {
        if let Event::Warning { text } = &event {
            let mut last =
                self.last_warning.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            if last.as_str() == text {
                return;
            }
            last.clone_from(text);
        }
        match &self.mode {
            Mode::Quiet => {}
            Mode::Json => {
                if let Some(value) = event_json(&event) {
                    say(&value.to_string());
                }
            }
            Mode::Lines => {
                if let Some(line) = event_line(&event) {
                    say(&line);
                }
            }
            Mode::Bar(bar) => {
                // A panic elsewhere must not take the display with it.
                let mut bar = bar.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
                draw(&mut bar, &event);
            }
        }
    }
}

fn draw(bar: &mut ProgressBar, event: &Event) {
    match event {
        Event::PartStarted { part, estimate_bytes } => {
            bar.finish_and_clear();
            *bar = ProgressBar::with_draw_target(*estimate_bytes, ProgressDrawTarget::stderr());
            let form =
                "{msg} [{bar:30}] {bytes} of about {total_bytes}, {bytes_per_sec}, {eta} left";
            if let Ok(style) = ProgressStyle::with_template(form) {
                bar.set_style(style);
            }
            bar.set_message(part.clone());
            bar.enable_steady_tick(Duration::from_millis(250));
        }
        Event::Progress { plain_bytes } => {
            bar.inc(*plain_bytes);
            // Estimates are estimates: a bar beyond its end would look broken.
            if bar.length().is_some_and(|length| length < bar.position()) {
                bar.set_length(bar.position());
            }
        }
        Event::PartFinished { .. } => bar.finish_and_clear(),
        other => {
            if let Some(line) = event_line(other) {
                bar.suspend(|| say(&line));
            }
        }
    }
}

/// Shows a time to the second; nothing if there is none.
pub(crate) fn time(time: Option<Timestamp>) -> String {
    time.map(|time| format!("{time:.0}")).unwrap_or_default()
}

/// Says an event in a line; nothing where it says too little.
pub(crate) fn event_line(event: &Event) -> Option<String> {
    Some(match event {
        Event::Step { what } => what.clone(),
        Event::PartFinished { part, plain_bytes, stored_bytes } => {
            format!("{part}: {} read, {} stored", size(*plain_bytes), size(*stored_bytes))
        }
        Event::ItemError { item, error } => format!("left out {item}: {error}"),
        Event::Warning { text } => format!("warning: {text}"),
        Event::Retrying { what, error, after } => {
            let after = after.as_secs_f64();
            format!("trying again in {after:.1} s: {what}: {error}")
        }
        _ => return None,
    })
}

fn event_json(event: &Event) -> Option<Value> {
    Some(match event {
        Event::Step { what } => json!({"event": "step", "what": what}),
        Event::PartStarted { part, estimate_bytes } => {
            json!({"event": "part_started", "part": part, "estimate_bytes": estimate_bytes})
        }
        Event::PartFinished { part, plain_bytes, stored_bytes } => {
            json!({"event": "part_finished", "part": part, "plain_bytes": plain_bytes, "stored_bytes": stored_bytes})
        }
        Event::ItemError { item, error } => {
            json!({"event": "item_error", "item": item, "error": error})
        }
        Event::Warning { text } => json!({"event": "warning", "text": text}),
        Event::Retrying { what, error, after } => {
            json!({"event": "retrying", "what": what, "error": error, "after_ms": after.as_millis() as u64})
        }
        Event::Progress { plain_bytes } => json!({"event": "progress", "plain_bytes": plain_bytes}),
        _ => return None,
    })
}

/// Writes a line to standard error. A reader who left does not stop a backup.
pub(crate) fn say(line: &str) {
    drop(writeln!(std::io::stderr().lock(), "{line}"));
}

/// Writes a result to standard output.
pub(crate) fn print(text: &str) -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    match writeln!(out, "{text}").and_then(|()| out.flush()) {
        // `backstay backups | head` is no failure.
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
        other => Ok(other?),
    }
}

pub(crate) fn print_json(value: &impl Serialize) -> anyhow::Result<()> {
    // By way of a value, so that the fields stand in the order of their names.
    print(&serde_json::to_string_pretty(&serde_json::to_value(value)?)?)
}

/// A backup as people see it; `orphaned` if objects of it are gone.
pub(crate) fn backup_view(
    entry: &IndexEntry,
    (storage, location): (&str, &str),
    is_orphaned: bool,
) -> BackupView {
    let item_errors = entry.item_errors.iter();
    BackupView {
        id: entry.id.clone(),
        source: entry.source.clone(),
        status: if is_orphaned { "orphaned".to_owned() } else { word(entry.status) },
        trigger: entry.trigger,
        storage: storage.to_owned(),
        location: format!("{location}/{}", entry.id),
        started_at: entry.started_at,
        finished_at: entry.finished_at,
        plain_bytes: entry.plain_bytes,
        stored_bytes: entry.stored_bytes,
        parts: json!(entry.parts),
        warnings: entry.warnings.clone(),
        item_errors: item_errors
            .map(|error| ItemErrorView { item: error.item.clone(), error: error.error.clone() })
            .collect(),
        item_error_count: entry.item_error_count,
        encryption: entry.encryption.clone(),
        note: entry.note.clone(),
        hold: entry.hold.clone(),
        undated: entry.is_undated,
        host: entry.host.clone(),
    }
}

/// A table that fits the terminal.
pub(crate) fn table(head: &[&str], rows: Vec<Vec<String>>) -> String {
    let mut table = comfy_table::Table::new();
    table.load_style(comfy_table::presets::NOTHING).set_header(head.to_vec());
    for row in rows {
        table.add_row(row);
    }
    table.to_string().lines().map(str::trim_end).collect::<Vec<_>>().join("\n")
}

/// A backup as a row.
pub(crate) fn backup_row(backup: &BackupView) -> Vec<String> {
    let sealed = if backup.encryption == Encryption::None { "no" } else { "yes" };
    let took = match backup.trigger {
        // From the day of the dump to that of the import.
        Trigger::Imported => String::new(),
        _ => seconds(backup.finished_at.duration_since(backup.started_at)),
    };
    let mut remarks = Vec::new();
    if backup.item_error_count > 0 {
        remarks.push(format!("{} items missing", backup.item_error_count));
    }
    if backup.undated {
        remarks.push("its time is not known".to_owned());
    }
    if !backup.warnings.is_empty() {
        let number = backup.warnings.len();
        remarks.push(if number == 1 {
            "1 warning".to_owned()
        } else {
            format!("{number} warnings")
        });
    }
    remarks.extend(backup.hold.as_ref().map(|why| format!("held: {why}")));
    remarks.extend(backup.note.clone());
    vec![
        backup.id.to_string(),
        backup.source.to_string(),
        backup.status.clone(),
        trigger(backup.trigger).to_owned(),
        backup.storage.clone(),
        size(backup.plain_bytes),
        size(backup.stored_bytes),
        took,
        sealed.to_owned(),
        remarks.join("; "),
    ]
}

pub(crate) const BACKUP_HEAD: [&str; 10] =
    ["ID", "SOURCE", "STATUS", "TRIGGER", "STORAGE", "SIZE", "STORED", "TOOK", "SEALED", "REMARKS"];

/// The word for a value of a closed set, as it stands in JSON.
pub(crate) fn word(value: impl serde::Serialize) -> String {
    serde_json::to_value(value).ok().and_then(|v| v.as_str().map(str::to_owned)).unwrap_or_default()
}

fn trigger(trigger: Trigger) -> &'static str {
    match trigger {
        Trigger::Manual => "manual",
        Trigger::Scheduled => "scheduled",
        Trigger::PreRestore => "pre-restore",
        Trigger::PreDeploy => "pre-deploy",
        Trigger::PostDeploy => "post-deploy",
        Trigger::Imported => "imported",
        Trigger::Drill => "drill",
    }
}

/// Bytes for a person.
pub(crate) fn size(bytes: u64) -> String {
    indicatif::BinaryBytes(bytes).to_string()
}

/// How long ago, for a person.
pub(crate) fn age(then: Timestamp, now: Timestamp) -> Span {
    Span(now.duration_since(then))
}

/// How long something takes, for a person.
pub(crate) fn seconds(duration: SignedDuration) -> String {
    match duration.as_secs() {
        0..120 => format!("{:.1} s", duration.as_secs_f64()),
        long => format!("{} min", long / 60),
    }
}
