//! `ssh = { host = "…" }` of a source: the machine that its server is reached through.

use std::path::PathBuf;

use backstay_engine::source::tunnel::{Bastion, is_host, is_plain_path};
use toml::Spanned;

use super::Env;
use super::raw::{Faults, RawSsh};

/// Reads the table. `server` is the host behind the bastion.
pub(super) fn check(
    raw: &Spanned<RawSsh>,
    server: &str,
    env: Env<'_>,
    faults: &mut Faults<'_>,
) -> Option<Bastion> {
    if !is_host(server) {
        let problem = format!("cannot lead to `{server}`: expected a name or an address as host");
        faults.add("ssh", raw.span(), problem);
        return None;
    }
    let RawSsh { host, user, port, identity_file, known_hosts_file } = raw.get_ref();
    let bastion = checked("ssh.host", host, env, faults, is_host, "a name or an address");
    let user = match user {
        None => Some(None),
        Some(user) => {
            let is_user = |text: &str| !text.is_empty() && !text.contains(char::is_whitespace);
            checked("ssh.user", user, env, faults, is_user, "the name of a user").map(Some)
        }
    };
    let port = match port.as_ref().map(|port| (port, u16::try_from(*port.get_ref()))) {
        None => Some(None),
        Some((_, Ok(number))) if number > 0 => Some(Some(number)),
        Some((port, _)) => {
            let problem = format!("found {}, expected a port, 1 to 65535", port.get_ref());
            faults.add("ssh.port", port.span(), problem);
            None
        }
    };
    let mut file = |name: &str, value: &Option<Spanned<String>>| match value {
        None => Some(None),
        Some(value) => {
            let expected = "an absolute path without quotes, `\\`, `%` and `$`";
            let path = checked(name, value, env, faults, is_plain_path, expected)?;
            Some(Some(PathBuf::from(path)))
        }
    };
    let identity_file = file("ssh.identity_file", identity_file);
    let known_hosts_file = file("ssh.known_hosts_file", known_hosts_file);
    Some(Bastion {
        host: bastion?,
        user: user?,
        port: port?,
        identity_file: identity_file?,
        known_hosts_file: known_hosts_file?,
    })
}

fn checked(
    name: &str,
    value: &Spanned<String>,
    env: Env<'_>,
    faults: &mut Faults<'_>,
    is_legal: impl Fn(&str) -> bool,
    expected: &str,
) -> Option<String> {
    let text = faults.text(name, value, env)?;
    if is_legal(&text) {
        return Some(text);
    }
    faults.add(name, value.span(), format!("found `{text}`, expected {expected}"));
    None
}
