//! Names of databases that restores make on a server.

use backstay_format::Sha256;

/// How the names of databases begin that were loaded.
pub(super) const NEW: &str = "backstay_new_";
/// How the names of databases begin that were replaced.
pub(super) const OLD: &str = "backstay_old_";
/// Of the digest of a source's identity, in the names of what is loaded for it.
const IDENTITY_BYTES: usize = 4;

/// How the names of databases begin that are loaded for a source: whoever sweeps knows its own, and leaves those of other
/// sources of the same server alone.
pub(super) fn loaded_for(identity: &str) -> String {
    let digest = Sha256::of(identity.as_bytes());
    format!("{NEW}{}_", hex::encode(&digest.as_bytes()[..IDENTITY_BYTES]))
}
