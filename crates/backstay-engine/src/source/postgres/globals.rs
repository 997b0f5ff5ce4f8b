//! Roles and properties as statements: for the parts that a person can run with `psql`, and for our own restores.

use backstay_format::{DatabaseProperties, DatabaseRole, Membership, Tablespace};

/// Quotes a name.
pub(super) fn identifier(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// Returns a table's name with its schema, each quoted only where it must be.
pub(super) fn qualified(schema: &str, table: &str) -> String {
    let quoted = |name: &str| {
        let is_plain = |(i, c): (usize, char)| {
            c == '_' || c.is_ascii_lowercase() || i > 0 && c.is_ascii_digit()
        };
        if name.chars().enumerate().all(is_plain) { name.to_owned() } else { identifier(name) }
    };
    format!("{}.{}", quoted(schema), quoted(table))
}

/// Quotes a text.
pub(super) fn literal(text: &str) -> String {
    let quoted = text.replace('\'', "''");
    if quoted.contains('\\') {
        format!("E'{}'", quoted.replace('\\', "\\\\"))
    } else {
        format!("'{quoted}'")
    }
}

/// Settings whose values are lists: they are kept as written, each element quoted as it needs.
const LISTS: [&str; 6] = [
    "local_preload_libraries",
    "search_path",
    "session_preload_libraries",
    "shared_preload_libraries",
    "temp_tablespaces",
    "unix_socket_directories",
];

fn setting(name: &str, value: &str) -> String {
    let value =
        if LISTS.contains(&name) && !value.is_empty() { value.to_owned() } else { literal(value) };
    // Names of settings may have dots, which are no part of a quoted name.
    let name = name.split('.').map(identifier).collect::<Vec<_>>().join(".");
    format!("SET {name} TO {value}")
}

/// Returns the statements that make a role.
pub(super) fn create_role(role: &DatabaseRole) -> Vec<String> {
    let name = identifier(&role.name);
    let mut create = vec![format!("CREATE ROLE {name}")];
    let attributes = [
        (role.is_superuser, "SUPERUSER"),
        (role.may_create_roles, "CREATEROLE"),
        (role.may_create_databases, "CREATEDB"),
        (role.may_log_in, "LOGIN"),
        (role.may_replicate, "REPLICATION"),
        (role.bypasses_row_security, "BYPASSRLS"),
        (!role.inherits, "NOINHERIT"),
    ];
    create.extend(attributes.iter().filter(|(has, _)| *has).map(|(_, word)| (*word).to_owned()));
    if role.connection_limit >= 0 {
        create.push(format!("CONNECTION LIMIT {}", role.connection_limit));
    }
    create.extend(role.valid_until.iter().map(|until| format!("VALID UNTIL {}", literal(until))));
    create.extend(role.password.iter().map(|hash| format!("PASSWORD {}", literal(hash))));
    let settings = role.settings.iter().filter_map(|setting| setting.split_once('='));
    let settings =
        settings.map(|(key, value)| format!("ALTER ROLE {name} {}", setting(key, value)));
    std::iter::once(create.join(" ")).chain(settings).collect()
}

/// Returns the statement that makes a role a member.
pub(super) fn grant_membership(membership: &Membership) -> String {
    let (role, member) = (identifier(&membership.role), identifier(&membership.member));
    let mut options = Vec::new();
    if membership.with_admin_option {
        options.push("ADMIN OPTION".to_owned());
    }
    // Servers that have no such options are never restored to from one that has.
    options.extend(membership.inherits.map(|inherits| format!("INHERIT {inherits}")));
    options.extend(membership.may_set.map(|may_set| format!("SET {may_set}")));
    let with = if options.is_empty() { "" } else { " WITH " };
    format!("GRANT {role} TO {member}{with}{}", options.join(", "))
}

/// Returns the statement that makes an empty database of the same kind.
pub(super) fn create_database(name: &str, properties: &DatabaseProperties) -> String {
    let provider = match properties.locale_provider.as_str() {
        "i" => Some(("icu", "ICU_LOCALE")),
        "b" => Some(("builtin", "BUILTIN_LOCALE")),
        _ => None,
    };
    let locale = provider.zip(properties.locale.as_ref()).map(|((provider, field), locale)| {
        format!(" LOCALE_PROVIDER {provider} {field} {}", literal(locale))
    });
    let tablespace = properties.tablespace.as_deref().map(identifier);
    let tablespace = tablespace.map(|name| format!(" TABLESPACE {name}"));
    format!(
        "CREATE DATABASE {} WITH TEMPLATE template0 ENCODING {} LC_COLLATE {} LC_CTYPE {}{}{}",
        identifier(name),
        literal(&properties.encoding),
        literal(&properties.collate),
        literal(&properties.ctype),
        locale.unwrap_or_default(),
        tablespace.unwrap_or_default(),
    )
}

/// Returns the statements that give a database its properties: comment, limits, settings, rights, owner.
pub(super) fn dress_database(database: &str, properties: &DatabaseProperties) -> Vec<String> {
    let name = identifier(database);
    let comment = properties.comment.iter();
    let mut statements: Vec<String> =
        comment.map(|text| format!("COMMENT ON DATABASE {name} IS {}", literal(text))).collect();
    if properties.connection_limit >= 0 {
        let limit = properties.connection_limit;
        statements.push(format!("ALTER DATABASE {name} CONNECTION LIMIT {limit}"));
    }
    for kept in &properties.settings {
        let set = setting(&kept.name, &kept.value);
        statements.push(match &kept.role {
            None => format!("ALTER DATABASE {name} {set}"),
            Some(role) => format!("ALTER ROLE {} IN DATABASE {name} {set}", identifier(role)),
        });
    }
    if !properties.grants.is_empty() {
        // What a new database grants to everybody may be just what was taken away from this one.
        statements.push(format!("REVOKE ALL ON DATABASE {name} FROM PUBLIC"));
    }
    for grant in &properties.grants {
        let to = grant.grantee.as_deref().map_or_else(|| "PUBLIC".to_owned(), identifier);
        let option = if grant.with_grant_option { " WITH GRANT OPTION" } else { "" };
        statements.push(format!("GRANT {} ON DATABASE {name} TO {to}{option}", grant.privilege));
    }
    // Last: a role that is not the owner any more may change nothing of the above.
    statements.push(format!("ALTER DATABASE {name} OWNER TO {}", identifier(&properties.owner)));
    statements
}

/// Writes roles as a file for `psql`.
pub(super) fn roles_file(roles: &[DatabaseRole], memberships: &[Membership]) -> String {
    let roles = roles.iter().flat_map(create_role);
    script(roles.chain(memberships.iter().map(grant_membership)))
}

/// Writes tablespaces as a file for `psql`.
pub(super) fn tablespaces_file(tablespaces: &[Tablespace]) -> String {
    script(tablespaces.iter().map(|tablespace| {
        let Tablespace { name, owner, location } = tablespace;
        let (name, owner, location) = (identifier(name), identifier(owner), literal(location));
        format!("CREATE TABLESPACE {name} OWNER {owner} LOCATION {location}")
    }))
}

/// Writes a database's properties as a file for `psql`.
pub(super) fn database_file(name: &str, properties: &DatabaseProperties) -> String {
    let create = create_database(name, properties);
    script(std::iter::once(create).chain(dress_database(name, properties)))
}

fn script(statements: impl Iterator<Item = String>) -> String {
    statements.map(|statement| statement + ";\n").collect()
}
