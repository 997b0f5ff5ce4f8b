//! Getting the keys back from a vault and the recovery key alone.

use backstay_format::{KeyId, Keyring, ParsedName};

use crate::cx::Cx;
use crate::error::EngineError;
use crate::vault::Vault;

/// What a vault's key slots gave back.
#[derive(Debug)]
pub struct RecoveredKeys {
    /// The keys of the kit and of the slots.
    pub keyring: Keyring,
    /// Slots that did not open.
    pub unusable: Vec<(KeyId, EngineError)>,
}

/// Adds the keys in the vault's slots to those of the kit. A slot that does not open hides no other.
pub async fn recover_keys(
    cx: &Cx,
    vault: &Vault,
    mut keyring: Keyring,
) -> Result<RecoveredKeys, EngineError> {
    let mut unusable = Vec::new();
    for name in vault.key_slot_names(cx).await? {
        let ParsedName::KeySlots(key) = ParsedName::parse(&name) else { continue };
        let opened = match vault.key_slot(cx, &key).await {
            Ok(slot) if slot.key == key => {
                slot.open(keyring.recovery()?).map(|data| (data, slot.created_at))
            }
            Ok(slot) => {
                let finding = format!("it holds key {}", slot.key);
                Err(backstay_format::SlotError::Malformed { finding })
            }
            Err(EngineError::Slot(error)) => Err(error),
            Err(other) => return Err(other),
        };
        match opened {
            Ok((data, created_at)) => drop(keyring.add(data, created_at)),
            // The kit may hold this key itself.
            Err(_) if keyring.get(&key).is_ok() => {}
            Err(error) => unusable.push((key, error.into())),
        }
    }
    Ok(RecoveredKeys { keyring, unusable })
}
