//! `backstay members` and `backstay audit`: who asks this installation's server from elsewhere, and who did what (ADR 21).

use backstay_control::{Change, Member};
use backstay_format::Slug;
use backstay_server::AuditView;
use jiff::Timestamp;
use secrecy::ExposeSecret as _;
use serde_json::{Value, json};

use crate::cli::MembersCommand;
use crate::exit::{Exit, UsageError};
use crate::installation::Installation;
use crate::render;

pub(super) async fn members(
    app: &Installation,
    command: MembersCommand,
    json: bool,
) -> anyhow::Result<Exit> {
    let now = app.catalog.time(app.cx.now()).await?;
    let own = &app.config.organisation;
    match command {
        MembersCommand::List { organisation } => {
            let members = all(app, organisation.as_ref()).await?;
            if json {
                let all = members.iter().map(|member| as_json(member, now));
                render::print_json(&all.collect::<Vec<_>>())?;
            } else if members.is_empty() {
                render::print("there are no members; `backstay members add` makes one")?;
            } else {
                let rows = members.iter().map(|member| row(member, now)).collect();
                let head = ["MEMBER", "ORGANISATION", "ROLE", "STATE", "SEEN", "UNTIL"];
                render::print(&render::table(&head, rows))?;
            }
        }
        MembersCommand::Add { name, role, organisation, valid } => {
            let organisation = organisation.as_ref().unwrap_or(own);
            if !app.config.knows(organisation) {
                let text = format!(
                    "no storage is of organisation {organisation}: say so in its table, organisation = \"{organisation}\""
                );
                return Err(UsageError(text).into());
            }
            let until = valid.map(|valid| now.checked_add(valid)).transpose();
            let until = until
                .map_err(|_| UsageError("--valid is longer than time can be counted".to_owned()))?;
            let added = app.catalog.add_member((organisation, &name), role, until, now).await?;
            let token = added.ok_or_else(|| {
                UsageError(format!(
                    "there is a member {name} already; choose another name, or end that one with `backstay members revoke {name}`"
                ))
            })?;
            let token = token.to_text();
            if json {
                let token = token.expose_secret();
                render::print_json(
                    &json!({"name": name, "role": role, "token": token, "expires_at": until}),
                )?;
            } else {
                render::print(token.expose_secret())?;
                render::say(&format!(
                    "shown this once: {name}, as {role}, asks with it by `backstay --server URL --token-file FILE …`, or BACKSTAY_TOKEN"
                ));
            }
        }
        MembersCommand::Revoke { name, organisation } => {
            let organisation = organisation.as_ref().unwrap_or(own);
            if !app.catalog.revoke_member((organisation, &name), now).await? {
                let text =
                    format!("there is no member {name}; list them with `backstay members list`");
                return Err(UsageError(text).into());
            }
            render::print(&format!("{name} is no member any more"))?;
            app.back_up_catalog_now().await;
        }
    }
    Ok(Exit::Done)
}

fn state(member: &Member, now: Timestamp) -> &'static str {
    if member.is_expired(now) { "expired" } else { "valid" }
}

/// Returns all members of an organisation, or all that there are.
pub(super) async fn all(
    app: &Installation,
    organisation: Option<&Slug>,
) -> anyhow::Result<Vec<Member>> {
    let mut all: Vec<Member> = Vec::new();
    loop {
        let page = app.catalog.members(organisation, all.last()).await?;
        if page.is_empty() {
            return Ok(all);
        }
        all.extend(page);
    }
}

fn row(member: &Member, now: Timestamp) -> Vec<String> {
    vec![
        member.name.to_string(),
        member.organisation.to_string(),
        member.role.to_string(),
        state(member, now).to_owned(),
        render::time(member.seen_at),
        render::time(member.expires_at),
    ]
}

fn as_json(member: &Member, now: Timestamp) -> Value {
    json!({
        "name": member.name,
        "organisation": member.organisation,
        "role": member.role,
        "state": state(member, now),
        "created_at": member.created_at,
        "expires_at": member.expires_at,
        "seen_at": member.seen_at,
    })
}

/// Returns the newest entries of the audit, of an organisation or of all, as people see them.
pub(super) async fn entries(
    app: &Installation,
    organisation: Option<&Slug>,
    limit: u32,
) -> anyhow::Result<Vec<AuditView>> {
    let entries = app.catalog.audit_entries(organisation, limit).await?;
    let view = |entry: backstay_control::AuditEntry| {
        let Change { actor, action, subject, outcome } = entry.change;
        AuditView { at: entry.at, actor, action, subject, outcome }
    };
    Ok(entries.into_iter().map(view).collect())
}

pub(super) fn show_audit(entries: &[AuditView], json: bool) -> anyhow::Result<Exit> {
    if json {
        render::print_json(&entries)?;
    } else if entries.is_empty() {
        render::print("nothing was changed yet")?;
    } else {
        let row = |entry: &AuditView| {
            vec![
                render::time(Some(entry.at)),
                entry.actor.clone(),
                entry.action.clone(),
                entry.subject.clone(),
                entry.outcome.clone(),
            ]
        };
        let head = ["AT", "WHO", "WHAT", "OF", "OUTCOME"];
        render::print(&render::table(&head, entries.iter().map(row).collect()))?;
    }
    Ok(Exit::Done)
}
