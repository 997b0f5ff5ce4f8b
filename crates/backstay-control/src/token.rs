//! Tokens: what workers, members and those who are invited show to say who they are.

use backstay_format::Sha256;
use rand::RngCore as _;
use secrecy::{ExposeSecret as _, SecretString};

/// A secret that somebody shows to say who he is, and the public id that it is found by: `bsw.ID.SECRET`.
#[derive(Debug, Clone)]
pub struct Token {
    pub(crate) kind: TokenKind,
    pub(crate) id: String,
    secret: SecretString,
}

/// What a token is for; the beginning of its text says so.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TokenKind {
    /// Works once: whoever has it may enrol a worker.
    Invitation,
    /// A worker's own, which it made itself.
    Worker,
    /// A member's, for the API.
    Member,
}

/// A text is no token.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("expected a token such as `{}` prints: {}.ID.SECRET", .0.made_by(), .0.prefix())]
pub struct NoToken(TokenKind);

impl TokenKind {
    /// Returns what the texts of its tokens begin with.
    fn prefix(self) -> &'static str {
        match self {
            Self::Invitation => "bsi",
            Self::Worker => "bsw",
            Self::Member => "bsm",
        }
    }

    /// Returns the command that a person has it from, in the end.
    fn made_by(self) -> &'static str {
        match self {
            Self::Invitation | Self::Worker => "backstay workers invite",
            Self::Member => "backstay members add",
        }
    }
}

impl Token {
    /// Makes a new one.
    pub fn new(kind: TokenKind) -> Self {
        let mut bytes = [0; 8 + 32];
        rand::rng().fill_bytes(&mut bytes);
        let (id, secret) = bytes.split_at(8);
        Self { kind, id: hex::encode(id), secret: hex::encode(secret).into() }
    }

    /// Reads a token of this kind.
    pub fn parse(kind: TokenKind, text: &str) -> Result<Self, NoToken> {
        let mut parts = text.trim().split('.');
        let (prefix, id, secret, rest) = (parts.next(), parts.next(), parts.next(), parts.next());
        match (id, secret, rest) {
            (Some(id), Some(secret), None)
                if prefix == Some(kind.prefix())
                    && Self::is_id(id)
                    && secret.len() == 64
                    && secret.bytes().all(|byte| byte.is_ascii_hexdigit()) =>
            {
                Ok(Self { kind, id: id.to_owned(), secret: secret.into() })
            }
            _ => Err(NoToken(kind)),
        }
    }

    /// Returns what it is found by.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Says whether a text can be the id of a token.
    pub fn is_id(text: &str) -> bool {
        text.len() == 16 && text.bytes().all(|byte| byte.is_ascii_hexdigit())
    }

    /// Returns it as it is shown to whoever is to believe it.
    pub fn to_text(&self) -> SecretString {
        format!("{}.{}.{}", self.kind.prefix(), self.id, self.secret.expose_secret()).into()
    }

    /// Returns what is kept of its secret: 32 random bytes need no salt.
    pub fn digest(&self) -> Sha256 {
        Sha256::of(self.secret.expose_secret().as_bytes())
    }

    /// Says whether its secret has this digest, in a time that tells nothing.
    pub(crate) fn has(&self, digest: &str) -> bool {
        let own = self.digest().to_string();
        aws_lc_rs::constant_time::verify_slices_are_equal(own.as_bytes(), digest.as_bytes()).is_ok()
    }
}
