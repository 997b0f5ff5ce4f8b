//! What a restore would do, for a person and for programs.

use backstay_control::{OfSource, PastRestore};
use backstay_engine::event::Event;
use backstay_engine::restore::RestorePlan;
use backstay_engine::source::How;
use backstay_engine::vault::Vault;
use backstay_format::Content;
use jiff::SignedDuration;
use serde_json::json;

use super::holdings;
use crate::cli::RestoreArgs;
use crate::installation::Installation;
use crate::render;

/// Shows what a restore would do, and how long that should take (V47-V50).
pub(super) async fn show(
    app: &Installation,
    vault: &Vault,
    plan: &RestorePlan,
    args: &RestoreArgs,
    json: bool,
) -> anyhow::Result<()> {
    let (manifest, outlook, now) = (&plan.manifest, &plan.outlook, app.cx.now());
    let expected = expected(app, vault, plan).await?;
    if json {
        if !args.dry_run {
            return Ok(());
        }
        return render::print_json(&json!({
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
            "how": how(outlook.how),
            "expected_seconds": expected.as_ref().map(|expected| expected.takes.as_secs_f64()),
            "content": plan.content().cloned().map(Content::without_secrets),
            "present": outlook.present,
            "warnings": outlook.warnings,
        }));
    }
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
    lines.extend(manifest.engine.as_ref().map(|engine| {
        let now = outlook.engine.as_ref().map(|now| format!(", now {now}"));
        format!("Engine    {engine}{}", now.unwrap_or_default())
    }));
    lines.extend(plan.details.schema_version.as_ref().map(|applied| {
        let last = applied.last().map(|last| format!(", up to {last}"));
        format!("Schema    {} migrations{}", applied.len(), last.unwrap_or_default())
    }));
    let present = outlook.present.as_ref();
    lines.extend(plan.content().into_iter().flat_map(|then| holdings::describe(then, present)));
    let verb = if outlook.replaces { "Replaces " } else { "Makes    " };
    lines.push(format!("{verb} {}", outlook.target));
    if outlook.replaces {
        lines.push(format!(
            "Loses     what was changed there in the last {}, unless undone",
            render::age(manifest.started_at, now)
        ));
        lines.push(format!("How       {}", how(outlook.how)));
    }
    lines.extend(expected.map(|expected| {
        let (takes, took) = (render::seconds(expected.takes), render::seconds(expected.past.took));
        format!("Expected  {takes}: restoring {} took {took}", expected.past.backup)
    }));
    lines.extend(outlook.warnings.iter().map(|warning| format!("Warning   {warning}")));
    let preview = lines.join("\n");
    if args.yes {
        // Nobody is asked, so --quiet may keep it back.
        app.cx.event(Event::Step { what: preview });
    } else {
        render::say(&preview);
    }
    Ok(())
}

/// How long a restore should take, from the one before.
struct Expected {
    takes: SignedDuration,
    past: PastRestore,
}

async fn expected(
    app: &Installation,
    vault: &Vault,
    plan: &RestorePlan,
) -> anyhow::Result<Option<Expected>> {
    let source = &plan.place.source;
    let organisation = plan.place.organisation.as_str();
    let of = OfSource { organisation, source: source.as_str() };
    let Some(past) = app.catalog.last_restore(of).await? else { return Ok(None) };
    let listing = vault.list(&app.cx, &plan.place.organisation, source).await?;
    let Some(then) = listing.backups.iter().find(|entry| entry.id.as_str() == past.backup) else {
        return Ok(None);
    };
    // What takes time grows with the bytes; a small backup has its fixed costs all the same.
    let growth = plan.manifest.plain_bytes().max(1) as f64 / then.plain_bytes.max(1) as f64;
    let takes = past.took.as_secs_f64() * growth.max(1.0);
    let takes = SignedDuration::try_from_secs_f64(takes).unwrap_or(past.took);
    Ok(Some(Expected { takes, past }))
}

fn how(how: How) -> &'static str {
    match how {
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
    }
}
