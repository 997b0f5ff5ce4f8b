//! Putting members of a set back: all are loaded beside before the first takes its place.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use async_trait::async_trait;
use backstay_format::{Content, Details, MediaType, PartName, SetMember};

use super::SetSource;
use super::exchange::{Replacement, remove_empty};
use crate::cx::Cx;
use crate::part::PartReader;
use crate::source::{
    Applied, ApplyReport, How, Loaded, Outlook, SourceError, Target, TargetOptions,
};
use crate::swap;

/// Names that a person is shown, of however many there are.
const SHOWN: usize = 10;

/// Places beside the members.
pub(super) struct SetTarget {
    source: SetSource,
    options: TargetOptions,
    prepared: Vec<Place>,
    /// Directories that were not there, the innermost last.
    made: Vec<PathBuf>,
}

/// The place of a member.
struct Place {
    name: String,
    folder: String,
    path: PathBuf,
    target: Box<dyn Target>,
    details: Details,
}

impl Place {
    fn owns(&self, part: &PartName) -> bool {
        part.as_str().rsplit_once('/').map(|(folder, _)| folder) == Some(self.folder.as_str())
    }
}

impl SetTarget {
    pub(super) fn new(source: &SetSource, options: TargetOptions) -> Self {
        Self { source: source.clone(), options, prepared: Vec::new(), made: Vec::new() }
    }

    fn root(&self) -> PathBuf {
        self.options.to.as_ref().map_or_else(|| self.source.root.clone(), PathBuf::from)
    }

    /// Returns the places of what comes back.
    fn places(&self, details: &Details) -> Result<Vec<Place>, SourceError> {
        let members = members_of(details)?;
        let chosen: Vec<&SetMember> =
            members.iter().filter(|one| self.source.members.is_chosen(&one.name)).collect();
        for pattern in self.source.members.only() {
            let some = self.source.members.choose([pattern.clone()]);
            if !chosen.iter().any(|one| some.is_chosen(&one.name)) {
                return Err(SourceError::NothingMatches { path: pattern.into() });
            }
        }
        let places = chosen.into_iter().map(|member| self.place(member, details));
        let places: Vec<Place> = places.collect::<Result<_, _>>()?;
        let mut known = BTreeMap::new();
        for place in &places {
            let path = place.path.canonicalize().unwrap_or_else(|_| place.path.clone());
            if let Some(other) = known.insert(path, &place.name) {
                let expected = format!("a place of its own: {other} lies there");
                return Err(SourceError::NoMember { name: place.name.clone(), expected });
            }
        }
        Ok(places)
    }

    fn place(&self, member: &SetMember, details: &Details) -> Result<Place, SourceError> {
        let place = |root: &Path| self.source.members.path_of(root, &member.name);
        let (Some(own), Some(path)) = (place(&self.source.root), place(&self.root())) else {
            let expected = format!("a member of {}", self.source.members);
            return Err(SourceError::NoMember { name: member.name.clone(), expected });
        };
        let to = self.options.to.is_some().then(|| path.clone().into());
        let options = TargetOptions { to, ..self.options.clone() };
        Ok(Place {
            name: member.name.clone(),
            folder: member.folder.clone(),
            target: self.source.member(own).target(options),
            path,
            details: Details { content: Some((*member.content).clone()), ..details.clone() },
        })
    }

    /// Makes the directory of a member that is gone with all that it had.
    fn make_parent(&mut self, path: &Path) -> Result<(), SourceError> {
        let missing: Vec<&Path> =
            path.ancestors().skip(1).take_while(|parent| !parent.exists()).collect();
        for directory in missing.into_iter().rev() {
            let failed = |cause| SourceError::io("make", directory, cause);
            fs::create_dir(directory).map_err(failed)?;
            self.made.push(directory.to_owned());
            if let Some(like) = directory.parent() {
                dress(directory, like).map_err(failed)?;
            }
        }
        Ok(())
    }
}

/// Gives a directory the owner and mode of another.
fn dress(directory: &Path, like: &Path) -> std::io::Result<()> {
    use std::os::unix::fs::MetadataExt as _;
    let meta = like.metadata()?;
    fs::set_permissions(directory, meta.permissions())?;
    // Without root's rights it is ours, as whatever we put into it.
    drop(std::os::unix::fs::chown(directory, Some(meta.uid()), Some(meta.gid())));
    Ok(())
}

fn members_of(details: &Details) -> Result<&[SetMember], SourceError> {
    match &details.content {
        Some(Content::Set(set)) => Ok(&set.members),
        _ => Err(SourceError::NoMember {
            name: "the backup".to_owned(),
            expected: "a backup of a set of databases; restore it as a source without `members`"
                .to_owned(),
        }),
    }
}

fn listed(names: &[&str]) -> String {
    let shown = names.iter().take(SHOWN).copied().collect::<Vec<_>>().join(", ");
    match names.len().saturating_sub(SHOWN) {
        0 => shown,
        more => format!("{shown} and {more} more"),
    }
}

#[async_trait]
impl Target for SetTarget {
    async fn outlook(&self, cx: &Cx, details: &Details) -> Result<Outlook, SourceError> {
        let places = self.places(details)?;
        let names: Vec<&str> = places.iter().map(|place| place.name.as_str()).collect();
        let mut all = Outlook {
            target: format!(
                "{} databases below {}: {}",
                names.len(),
                self.root().display(),
                listed(&names)
            ),
            replaces: false,
            how: How::Members,
            engine: None,
            present: None,
            warnings: Vec::new(),
        };
        let mut warnings = BTreeSet::new();
        for place in &places {
            let one = place.target.outlook(cx, &place.details).await?;
            all.replaces |= one.replaces;
            all.engine = one.engine;
            warnings.extend(one.warnings);
        }
        all.warnings.extend(warnings);
        if self.options.to.is_none() {
            let found = self.source.members.find(&self.source.root);
            let is_new = |name: &&str| !names.contains(name);
            let present = found.members.iter().filter(|member| member.path.exists());
            let newer: Vec<&str> =
                present.map(|member| member.name.as_str()).filter(is_new).collect();
            if !newer.is_empty() {
                all.warnings
                    .push(format!("not in the backup, and stays as it is: {}", listed(&newer)));
            }
        }
        Ok(all)
    }

    async fn prepare(&mut self, cx: &Cx, details: &Details) -> Result<(), SourceError> {
        for mut place in self.places(details)? {
            self.make_parent(&place.path)?;
            let details = place.details.clone();
            let prepared = place.target.prepare(cx, &details).await;
            // Also one that failed may have left something.
            self.prepared.push(place);
            prepared?;
        }
        Ok(())
    }

    fn wants(&self, part: &PartName, _media_type: MediaType) -> bool {
        self.prepared.iter().any(|place| place.owns(part))
    }

    async fn apply(&mut self, cx: &Cx, mut data: PartReader) -> Result<Applied, SourceError> {
        let part = data.spec.name.clone();
        let place = self.prepared.iter_mut().find(|place| place.owns(&part));
        let Some(place) = place else { return Err(SourceError::UnknownPart { part }) };
        let own = part.as_str().rsplit_once('/').map_or(part.as_str(), |(_, own)| own);
        data.spec.name =
            own.parse().map_err(|_| SourceError::UnknownPart { part: part.clone() })?;
        place.target.apply(cx, data).await
    }

    async fn finish(self: Box<Self>, cx: &Cx) -> Result<Loaded, SourceError> {
        let root = self.root();
        let (mut report, mut members) = (ApplyReport::default(), Vec::new());
        for place in self.prepared {
            let loaded = place.target.finish(cx).await?;
            report.items += loaded.report.items;
            report.bytes += loaded.report.bytes;
            report.warnings.extend(loaded.report.warnings);
            if let swap::Replacement::Paths(paths) = loaded.replacement {
                members.push((place.name, paths));
            }
        }
        let replacement = swap::Replacement::Set(Replacement { root, members, made: self.made });
        Ok(Loaded { report, replacement })
    }

    async fn discard(mut self: Box<Self>, cx: &Cx) -> Result<(), SourceError> {
        let mut failed = None;
        for place in std::mem::take(&mut self.prepared) {
            if let Err(error) = place.target.discard(cx).await {
                failed = Some(error);
            }
        }
        remove_empty(&self.made);
        failed.map_or(Ok(()), Err)
    }
}
