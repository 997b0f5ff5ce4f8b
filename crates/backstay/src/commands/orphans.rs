//! Orphans, both ways: backups whose objects are gone from their storage, and objects that no backup names (V36 to V38,
//! ADR 17).

use std::collections::BTreeSet;

use backstay_control::Orphans;
use backstay_engine::event::Event;
use backstay_engine::forget;
use backstay_engine::vault::{BackupPlace, Listing, Vault};
use backstay_format::{BackupId, Slug, Trigger};
use jiff::{SignedDuration, Timestamp};

use crate::config::SourceConfig;
use crate::installation::Installation;

/// Where nothing is backed up by schedule, orphans are looked for about once a day.
const EVERY: SignedDuration = SignedDuration::from_hours(20);

/// Lists a source in a vault, and finds what was listed last, is gone, and was removed by nobody here. Keeps what it finds.
pub(super) async fn list(
    app: &Installation,
    vault: &Vault,
    (organisation, source): (&Slug, &Slug),
) -> anyhow::Result<(Listing, Orphans)> {
    let named = (vault.id().as_str(), source.as_str());
    let before = app.catalog.known_backups(named.0, named.1).await?;
    let listing = vault.list(&app.cx, organisation, source).await?;
    let mut there: BTreeSet<&BackupId> = listing.backups.iter().map(|entry| &entry.id).collect();
    there.extend(listing.unusable.iter().map(|unusable| &unusable.id));
    let vanished: Vec<_> = before.into_iter().filter(|entry| !there.contains(&entry.id)).collect();
    if !vanished.is_empty() {
        // After the listing: whoever removes a backup says so first.
        for entry in app.catalog.not_removed(named, vanished).await? {
            // A list may be behind: only what was asked for by name is definitely not there.
            let place = BackupPlace {
                organisation: organisation.clone(),
                source: source.clone(),
                backup: entry.id.clone(),
            };
            if !vault.has_manifest(&app.cx, &place).await? {
                app.catalog.mark_lost(named, &entry, app.cx.now()).await?;
            }
        }
    }
    app.catalog.keep_listing(named, &listing.backups).await?;
    let mut orphans = app.catalog.orphans(named.0, named.1).await?;
    let came_back = orphans.lost.extract_if(.., |entry| there.contains(&entry.id));
    let came_back: Vec<BackupId> = came_back.map(|entry| entry.id).collect();
    app.catalog.came_back(named, &came_back).await?;
    Ok((listing, orphans))
}

/// Removes what no manifest names, and finds out of which backups something is gone, under the lease on their source: after each
/// backup by schedule, and once a day where there is no schedule. That it fails makes no backup worse.
pub(super) async fn survey_if_due(
    app: &Installation,
    source: &SourceConfig,
    vault: &Vault,
    trigger: Trigger,
) {
    let surveyed = async {
        let (setting, now) = (format!("survey of source {}", source.name), app.cx.now());
        let last: Option<Timestamp> = app.catalog.setting(&setting).await?;
        let is_recent = last.is_some_and(|last| now.duration_since(last).abs() < EVERY);
        if is_recent && trigger != Trigger::Scheduled {
            return Ok(());
        }
        survey(app, source, vault).await?;
        anyhow::Ok(app.catalog.set_setting(&setting, &now).await?)
    };
    if let Err(error) = surveyed.await {
        let text = format!("orphans of {} were not looked for: {error:#}", source.name);
        app.cx.event(Event::Warning { text });
    }
}

async fn survey(app: &Installation, source: &SourceConfig, vault: &Vault) -> anyhow::Result<()> {
    let named = (vault.id().as_str(), source.name.as_str());
    let (listing, orphans) = list(app, vault, (&source.organisation, &source.name)).await?;
    // Nobody removes one now: whoever was about to was stopped.
    let there: Vec<BackupId> = listing.backups.iter().map(|entry| entry.id.clone()).collect();
    app.catalog.still_there(named, &there).await?;
    let known = known(&listing, &orphans);
    let place = (&source.organisation, &source.name);
    let survey = forget::survey(&app.cx, vault, place, &listing.backups, &known).await?;
    let whole: Vec<BackupId> =
        there.into_iter().filter(|id| !survey.damaged.contains(id)).collect();
    app.catalog.mark_damaged(named, (&survey.damaged, &whole), app.cx.now()).await?;
    app.catalog.tidy_orphans(app.cx.now()).await?;
    let lost = orphans.lost.iter().map(|entry| entry.id.to_string());
    let ids: Vec<String> = survey.damaged.iter().map(ToString::to_string).chain(lost).collect();
    if !ids.is_empty() {
        let text = format!(
            "backups of {} are orphaned, objects of them are gone: {}",
            source.name,
            ids.join(", ")
        );
        app.cx.event(Event::Warning { text });
    }
    forget::prune(&app.cx, vault, &survey.unnamed).await?;
    Ok(())
}

/// Returns the sources that a vault has something of, or had when somebody looked last.
pub(super) async fn sources(
    app: &Installation,
    vault: &Vault,
    organisation: &Slug,
) -> anyhow::Result<BTreeSet<Slug>> {
    let mut sources: BTreeSet<Slug> =
        vault.sources(&app.cx, organisation).await?.into_iter().collect();
    let listed = app.catalog.listed_sources(vault.id().as_str()).await?;
    sources.extend(listed.iter().filter_map(|name| name.parse().ok()));
    Ok(sources)
}

/// The backups that somebody knows: what is left of them is no leftover, since their manifests may come back.
pub(super) fn known(listing: &Listing, orphans: &Orphans) -> BTreeSet<BackupId> {
    let listed = listing.backups.iter().chain(&orphans.lost).map(|entry| entry.id.clone());
    listed.chain(orphans.damaged.iter().cloned()).collect()
}
