//! What a restore would do, for a person and for programs.

use anyhow::Context as _;
use backstay_engine::cx::Cx;
use backstay_engine::event::Event;
use backstay_engine::restore::RestorePlan;
use backstay_engine::source::How;
use backstay_format::{BackupId, Content, TimeFrom};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::holdings;
use super::restore::ask;
use crate::cli::RestoreArgs;
use crate::past::Past;
use crate::{plain, render};

/// Lines and bytes of what a worker shows; more of it nobody reads, and no answer has room for it.
const MOST_LINES: usize = 500;
const MOST_BYTES: usize = 2 << 20;
/// What previews say of the backup of what is there.
const SAVED: &str = "present data backed up";
/// Lines about what a backup holds, and as many warnings.
const MOST_OF_A_KIND: usize = 200;

/// What a restore would do, as whoever asks sees it, wherever it was found out (V47-V50).
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Preview {
    /// Which backup would be restored.
    pub(crate) backup: BackupId,
    /// Where it would go, as the restore must find it again.
    pub(super) target: String,
    /// Whether something is there that would be replaced.
    pub(super) replaces: bool,
    /// For a person.
    lines: Vec<String>,
    /// For programs.
    facts: Map<String, Value>,
}

impl Preview {
    pub(super) fn new(
        (plan, is_saved): (&RestorePlan, bool),
        past: Option<&Past>,
        now: Timestamp,
    ) -> Self {
        let (backup, replaces) = (plan.place.backup.clone(), plan.outlook.replaces);
        let target = plan.outlook.target.to_string();
        let how = how(plan.outlook.how, is_saved);
        let (lines, facts) = (lines((plan, &how), past, now), facts((plan, &how), past));
        let mut preview = Self { backup, target, replaces, lines, facts };
        preview.cut();
        preview
    }

    /// Reads what somebody else found.
    pub(crate) fn read(value: Value) -> anyhow::Result<Self> {
        let mut preview: Self =
            serde_json::from_value(value).context("the preview cannot be understood")?;
        preview.cut();
        Ok(preview)
    }

    /// Returns it for somebody else, without the tables one by one where these are too many.
    pub(crate) fn into_json(mut self) -> Value {
        let value = |preview: &Self| serde_json::to_value(preview).expect("plain values");
        for name in ["content", "present", "warnings"] {
            let whole = value(&self);
            if whole.to_string().len() <= MOST_BYTES {
                return whole;
            }
            self.facts.insert(name.to_owned(), Value::Null);
            self.facts.insert("left_out".to_owned(), "what is null is too large to send".into());
        }
        value(&self)
    }

    fn cut(&mut self) {
        self.lines.truncate(MOST_LINES);
        self.lines.iter_mut().for_each(|line| *line = plain::line(line));
    }

    /// Shows it.
    pub(super) fn show(&self, cx: &Cx, args: &RestoreArgs, json: bool) -> anyhow::Result<()> {
        if json {
            return if args.dry_run { render::print_json(&self.facts) } else { Ok(()) };
        }
        let preview = self.lines.join("\n");
        if args.yes {
            // Nobody is asked, so --quiet may keep it back.
            cx.event(Event::Step { what: preview });
        } else {
            render::say(&preview);
        }
        Ok(())
    }

    /// Asks whether that is meant.
    pub(super) fn confirm(&self, yes: bool) -> anyhow::Result<()> {
        let what =
            if self.replaces { "This replaces what is there now." } else { "This makes it anew." };
        ask(what, "RESTORE", yes)
    }
}

fn facts((plan, how): (&RestorePlan, &str), past: Option<&Past>) -> Map<String, Value> {
    let (manifest, outlook) = (&plan.manifest, &plan.outlook);
    let expected = past.map(|past| past.expected(manifest.plain_bytes()).as_secs_f64());
    let facts = json!({
        "backup": plan.place.backup,
        "source": plan.place.source,
        "started_at": manifest.started_at,
        "tool": manifest.tool,
        "engine": manifest.engine,
        "engine_now": outlook.engine,
        "schema_version": plan.details.schema_version,
        "plain_bytes": manifest.plain_bytes(),
        "target": outlook.target,
        "replaces": outlook.replaces,
        "how": how,
        "expected_seconds": expected,
        "content": plan.content().cloned().map(Content::without_secrets),
        "present": outlook.present,
        "warnings": outlook.warnings,
    });
    serde_json::from_value(facts).expect("an object")
}

fn lines((plan, how): (&RestorePlan, &str), past: Option<&Past>, now: Timestamp) -> Vec<String> {
    let (manifest, outlook) = (&plan.manifest, &plan.outlook);
    let imported = plan.details.imported.as_deref();
    let is_undated = imported.is_some_and(|from| from.time_from == TimeFrom::File);
    let mut lines = vec![
        format!(
            "Backup    {} of {}, made {} ago by {}",
            plan.place.backup,
            plan.place.source,
            render::age(manifest.started_at, now),
            manifest.tool
        ),
        format!(
            "Size      {} ({} to fetch)",
            render::size(manifest.plain_bytes()),
            render::size(manifest.stored_bytes())
        ),
    ];
    lines.extend(imported.map(|from| {
        let when = if is_undated { "; its time is only that of the file" } else { "" };
        format!("Imported  from {} ({}){when}", from.path, from.form)
    }));
    lines.extend(manifest.engine.as_ref().map(|engine| {
        let now = outlook.engine.as_ref().map(|now| format!(", now {now}"));
        format!("Engine    {engine}{}", now.unwrap_or_default())
    }));
    lines.extend(plan.details.schema_version.as_ref().map(|applied| {
        let last = applied.last().map(|last| format!(", up to {last}"));
        format!("Schema    {} migrations{}", applied.len(), last.unwrap_or_default())
    }));
    let present = outlook.present.as_ref();
    let held = plan.content().map(|then| holdings::describe(then, present)).unwrap_or_default();
    lines.extend(first(held, "lines"));
    let verb = if outlook.replaces { "Replaces " } else { "Makes    " };
    lines.push(format!("{verb} {}", outlook.target));
    if outlook.replaces {
        let age = render::age(manifest.started_at, now);
        let since = match is_undated {
            true => format!("since it was made, {age} ago or long before"),
            false => format!("in the last {age}"),
        };
        lines.push(format!("Loses     what was changed there {since}, unless undone"));
        lines.push(format!("How       {how}"));
    }
    lines.extend(past.map(|past| {
        let takes = render::seconds(past.expected(manifest.plain_bytes()));
        format!("Expected  {takes}: restoring {} took {}", past.backup, render::seconds(past.took))
    }));
    let warnings = outlook.warnings.iter().map(|warning| format!("Warning   {warning}"));
    lines.extend(first(warnings.collect(), "warnings"));
    lines
}

/// Returns as many lines as a person reads, and says how many there are more.
fn first(mut lines: Vec<String>, what: &str) -> Vec<String> {
    if let Some(more) = lines.len().checked_sub(MOST_OF_A_KIND).filter(|more| *more > 0) {
        lines.truncate(MOST_OF_A_KIND);
        lines.push(format!("          and {more} more {what}; --dry-run --json lists all"));
    }
    lines
}

/// Says how it is done, and whether what is there is backed up before.
fn how(how: How, is_saved: bool) -> String {
    let text = match how {
        How::Swap => {
            "loaded beside, every byte proven, present data backed up, then swapped in one step"
        }
        How::Entries => {
            "in place: loaded into the directory, every byte proven, present data backed up, then swapped name by name, \
             since the directory itself cannot be renamed or --in-place was given"
        }
        How::Paths => {
            "only the chosen paths: loaded beside, every byte proven, present data backed up, then each swapped in one step"
        }
        How::Databases => {
            "loaded into a new database, every byte proven, rows counted, present data backed up, then the databases change \
             their names in one transaction"
        }
        How::Tables => {
            "loaded into a new database, every byte proven, rows counted, present data backed up, then the tables change their \
             names; for a moment the app finds none"
        }
        How::Programs => {
            "every byte proven and kept aside, present data backed up, then given to the restore commands, which replace in \
             their own way; nobody can take that back"
        }
        How::Members => {
            "each loaded beside, every byte proven, present data backed up, then one after the other swapped in; all of them or none"
        }
        How::Transaction => {
            "in place: every byte proven and kept aside, present data backed up, then dropped, loaded and counted in one transaction, \
             which the server takes back if anything fails"
        }
    };
    if is_saved { text.to_owned() } else { text.replace(SAVED, "present data NOT backed up") }
}
