//! `backstay workers`: who works for this installation on other machines.

use backstay_control::{Allowance, Worker};
use backstay_format::Slug;
use secrecy::ExposeSecret as _;
use serde_json::{Value, json};

use super::elsewhere::is_there;
use crate::cli::WorkersCommand;
use crate::exit::{Exit, UsageError};
use crate::installation::Installation;
use crate::render;

pub(super) async fn workers(
    app: &Installation,
    command: WorkersCommand,
    json: bool,
) -> anyhow::Result<Exit> {
    let now = app.catalog.time(app.cx.now()).await?;
    match command {
        WorkersCommand::List => {
            let workers = app.catalog.workers().await?;
            let (there, gone): (Vec<_>, Vec<_>) =
                workers.iter().partition(|worker| is_there(worker, now));
            if json {
                let all = there.iter().map(|worker| as_json(worker, true));
                let all = all.chain(gone.iter().map(|worker| as_json(worker, false)));
                render::print_json(&all.collect::<Vec<_>>())?;
            } else if workers.is_empty() {
                render::print(
                    "there are no workers; `backstay workers invite` makes a token for one",
                )?;
            } else {
                let rows = there.iter().map(|worker| row(worker, "there"));
                let rows = rows.chain(gone.iter().map(|worker| row(worker, "gone")));
                let head = ["WORKER", "LABELS", "STATE", "SEEN", "HOST", "VERSION"];
                render::print(&render::table(&head, rows.collect()))?;
            }
        }
        WorkersCommand::Invite { name, labels, valid } => {
            let until = now
                .checked_add(valid)
                .map_err(|_| UsageError("--valid is longer than time can be counted".to_owned()))?;
            let allowance = Allowance { name, labels: labels.into_iter().collect() };
            let token = app.catalog.invite(&allowance, until).await?.to_text();
            if json {
                render::print_json(&json!({"token": token.expose_secret(), "expires_at": until}))?;
            } else {
                render::print(token.expose_secret())?;
                render::say(&format!(
                    "works once, until {until:.0}: put it into a file on the worker's machine and run there \
                     `backstay worker --server URL --token-file FILE`"
                ));
            }
        }
        WorkersCommand::Revoke { name } => revoke(app, &name).await?,
    }
    Ok(Exit::Done)
}

async fn revoke(app: &Installation, name: &Slug) -> anyhow::Result<()> {
    let now = app.catalog.time(app.cx.now()).await?;
    if !app.catalog.revoke_worker(name, now).await? {
        let text = format!("there is no worker {name}; list them with `backstay workers list`");
        return Err(UsageError(text).into());
    }
    render::print(&format!(
        "worker {name} is none any more; what it had of storages' credentials and of the newest key it may have kept: \
         replace them if it was broken into (`backstay storage credentials`, `backstay keys rotate`)"
    ))?;
    app.back_up_catalog_now().await;
    Ok(())
}

fn labels(worker: &Worker) -> Vec<String> {
    worker.labels.iter().map(ToString::to_string).collect()
}

fn row(worker: &Worker, state: &str) -> Vec<String> {
    vec![
        worker.name.to_string(),
        labels(worker).join(", "),
        state.to_owned(),
        render::time(Some(worker.seen_at)),
        worker.host.clone(),
        worker.version.clone(),
    ]
}

fn as_json(worker: &Worker, is_there: bool) -> Value {
    json!({
        "name": worker.name,
        "labels": labels(worker),
        "there": is_there,
        "seen_at": worker.seen_at,
        "enrolled_at": worker.enrolled_at,
        "host": worker.host,
        "version": worker.version,
    })
}
