//! Tokens: who may use the server from elsewhere, in which role, and until when.
//!
//! # On disk
//! `tokens/NAME.json` of the home, mode 0600 in a folder of mode 0700: name, role, times, and the SHA-256 of the secret. The secret has 256
//! random bits, so that a hash without salt and rounds is enough: there is nothing to guess. It is shown once and kept nowhere.
//!
//! # As clients send it
//! `zmt_NAME_SECRET`: names have no underscore, the secret is base64 (URL alphabet, no padding) of 32 bytes. The name finds the file, so that a
//! token is checked by reading one small file, and one that was removed is refused from the next request on.

use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;
use zmachine_spec::{Class, Failure};
use zmachine_sys::file;

use crate::Role;

/// What every token begins with, by which programs that look for leaked secrets find one.
const PREFIX: &str = "zmt_";

/// Random bytes of a secret.
const SECRET_BYTES: usize = 32;

/// The longest name of a token, in characters.
const LONGEST_NAME: usize = 63;

/// The largest file of a token that is read, in bytes.
const FILE_BYTES: u64 = 4096;

/// The longest that a token may be valid.
const LONGEST: SignedDuration = SignedDuration::from_hours(24 * 3660);

/// The version of the files.
const VERSION: u32 = 1;

/// What is kept of a token.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Token {
    version: u32,
    /// Its name.
    pub name: String,
    /// What it is good for.
    pub role: Role,
    /// Since when.
    pub created_at: Timestamp,
    /// Until when.
    pub expires_at: Timestamp,
    /// The hash of the secret, in hex.
    sha256: String,
}

impl Token {
    /// Whether it is past its time.
    pub fn is_expired(&self, now: Timestamp) -> bool {
        now >= self.expires_at
    }
}

/// Why a token is not accepted. Clients are told the difference between the first two alone when the secret is right.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wrong {
    /// It is none of this home.
    Unknown,
    /// It is past its time.
    Expired,
}

/// The tokens of a home.
#[derive(Debug, Clone)]
pub struct Tokens {
    folder: PathBuf,
}

impl Tokens {
    /// Those of a home whose state is at `data`.
    pub fn of(data: &Path) -> Tokens {
        Tokens {
            folder: data.join("tokens"),
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.join(format!("{name}.json"))
    }

    /// Makes a token that is valid for `lifetime`, and gives it as its user sends it.
    ///
    /// # Errors
    /// [`Class::Usage`] for a name or a time that cannot be; [`Class::Conflict`] for a name that is taken.
    pub fn create(&self, name: &str, role: Role, lifetime: SignedDuration) -> Result<String, Failure> {
        if !is_name(name) {
            let message = format!("'{name}' cannot be a token's name");
            return Err(Failure::new(Class::Usage, message)
                .hint("use 1 to 63 lower-case letters, digits and '-', and no '-' at the beginning"));
        }
        if lifetime <= SignedDuration::ZERO || lifetime > LONGEST {
            let message = "a token is valid for more than no time, and for at most ten years";
            return Err(Failure::new(Class::Usage, message).hint("use --expires 30d"));
        }
        let mut secret = [0; SECRET_BYTES];
        file::fill_random(&mut secret)?;
        let now = Timestamp::now();
        let expires_at = now
            .checked_add(lifetime)
            .map_err(|e| Failure::from_error(Class::Usage, &e))?;
        let token = Token {
            version: VERSION,
            name: name.to_owned(),
            role,
            created_at: now,
            expires_at,
            sha256: hash(&secret),
        };
        std::fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&self.folder)?;
        std::fs::set_permissions(&self.folder, std::fs::Permissions::from_mode(0o700))?;
        let new = file::NewFile::create(&self.folder, 0o600)?;
        serde_json::to_writer(new.file(), &token).map_err(std::io::Error::from)?;
        if !new.publish_new(&self.path(name), true)? {
            let message = format!("there is a token '{name}' already");
            return Err(Failure::new(Class::Conflict, message).hint(format!(
                "remove it with 'zmachine token rm {name}', or use another name"
            )));
        }
        Ok(format!("{PREFIX}{name}_{}", URL_SAFE_NO_PAD.encode(secret)))
    }

    /// All tokens, by name; those whose files cannot be read as failures.
    ///
    /// # Errors
    /// When the folder cannot be read.
    pub fn list(&self) -> Result<(Vec<Token>, Vec<Failure>), Failure> {
        if !file::is_there(&self.folder)? {
            return Ok((Vec::new(), Vec::new()));
        }
        let (mut tokens, mut failures) = (Vec::new(), Vec::new());
        for name in file::names_in(&self.folder)? {
            let name = name.to_string_lossy().into_owned();
            let Some(name) = name.strip_suffix(".json") else {
                continue;
            };
            match self.read(name) {
                Ok(Some(token)) => tokens.push(token),
                Ok(None) => {}
                Err(failure) => failures.push(failure),
            }
        }
        tokens.sort_by(|one, other| one.name.cmp(&other.name));
        Ok((tokens, failures))
    }

    /// Removes a token: from the next request on it is refused, and connections that it has open end in a few seconds.
    ///
    /// # Errors
    /// [`Class::NotFound`].
    pub fn remove(&self, name: &str) -> Result<(), Failure> {
        let missing = || {
            Failure::new(Class::NotFound, format!("there is no token '{name}'"))
                .hint("'zmachine token ls' shows all of them")
        };
        if !is_name(name) {
            return Err(missing());
        }
        match std::fs::remove_file(self.path(name)) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Err(missing()),
            removed => Ok(removed?),
        }
    }

    fn read(&self, name: &str) -> Result<Option<Token>, Failure> {
        let path = self.path(name);
        let named = |failure: Failure| failure.context(format!("the token {} cannot be read", path.display()));
        let bytes = match file::read_regular(&path, FILE_BYTES) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(named(error.into())),
        };
        let token: Token = serde_json::from_slice(&bytes)
            .map_err(|e| named(Failure::from_error(Class::Failed, &e).hint("remove it and make another")))?;
        let is_ours = token.version == VERSION && token.name == name;
        is_ours.then_some(Some(token)).ok_or_else(|| {
            named(Failure::new(Class::Failed, "it is of another version, or another token's").hint("remove it"))
        })
    }

    /// Whether a token that was recognised before is still valid.
    pub fn is_still_valid(&self, token: &Token) -> bool {
        !token.is_expired(Timestamp::now()) && self.read(&token.name).is_ok_and(|kept| kept.as_ref() == Some(token))
    }

    /// The token that a client sends, when it is one of this home, and when it still is.
    ///
    /// # Errors
    /// Why not.
    pub fn recognise(&self, text: &str) -> Result<Token, Wrong> {
        let (name, secret) = parts(text).ok_or(Wrong::Unknown)?;
        // A file that cannot be read lets nobody in.
        let token = self.read(name).ok().flatten().ok_or(Wrong::Unknown)?;
        if !bool::from(hash(&secret).as_bytes().ct_eq(token.sha256.as_bytes())) {
            return Err(Wrong::Unknown);
        }
        match token.is_expired(Timestamp::now()) {
            true => Err(Wrong::Expired),
            false => Ok(token),
        }
    }
}

/// The name in a token, and its secret.
fn parts(text: &str) -> Option<(&str, Vec<u8>)> {
    let (name, secret) = text.strip_prefix(PREFIX)?.split_once('_')?;
    let secret = URL_SAFE_NO_PAD.decode(secret).ok()?;
    (is_name(name) && secret.len() == SECRET_BYTES).then_some((name, secret))
}

fn is_name(name: &str) -> bool {
    let is_plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    (1..=LONGEST_NAME).contains(&name.len()) && !name.starts_with('-') && name.chars().all(is_plain)
}

fn hash(secret: &[u8]) -> String {
    Sha256::digest(secret)
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

/// A time as users write it: `30d`, `12h`, `45m`, `90s`.
///
/// # Errors
/// A sentence for anything else.
pub fn lifetime(text: &str) -> Result<SignedDuration, String> {
    let wrong = || format!("'{text}' is no time: use 30d, 12h, 45m or 90s");
    let unit = text.chars().last().ok_or_else(wrong)?;
    let seconds: i64 = match unit {
        'd' => 86_400,
        'h' => 3_600,
        'm' => 60,
        's' => 1,
        _ => return Err(wrong()),
    };
    let count: u32 = text[..text.len() - 1].parse().map_err(|_| wrong())?;
    Ok(SignedDuration::from_secs(i64::from(count) * seconds))
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAY: SignedDuration = SignedDuration::from_hours(24);

    fn tokens() -> (tempfile::TempDir, Tokens) {
        let folder = tempfile::tempdir().unwrap();
        let tokens = Tokens::of(folder.path());
        (folder, tokens)
    }

    #[test]
    fn a_token_is_recognised_until_it_is_removed_and_kept_as_a_hash() {
        let (folder, tokens) = tokens();
        let text = tokens.create("ci", Role::Operator, DAY).unwrap();
        assert_eq!(tokens.recognise(&text).unwrap().role, Role::Operator);
        let path = folder.path().join("tokens/ci.json");
        let kept = std::fs::read_to_string(&path).unwrap();
        let secret = text.rsplit_once("ci_").unwrap().1;
        assert!(!kept.contains(secret), "{kept}");
        assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(
            tokens.create("ci", Role::Viewer, DAY).unwrap_err().class,
            Class::Conflict
        );
        assert_eq!(tokens.recognise(&text).unwrap().role, Role::Operator);
        tokens.remove("ci").unwrap();
        assert_eq!(tokens.recognise(&text), Err(Wrong::Unknown));
        assert_eq!(tokens.remove("ci").unwrap_err().class, Class::NotFound);
    }

    #[test]
    fn nothing_but_the_very_token_is_recognised() {
        let (folder, tokens) = tokens();
        let text = tokens.create("a", Role::Admin, DAY).unwrap();
        let other = tokens.create("b", Role::Viewer, DAY).unwrap();
        let secret = other.rsplit_once("b_").unwrap().1;
        std::fs::write(folder.path().join("tokens/broken.json"), "{}").unwrap();
        for wrong in [
            "",
            "zmt_",
            "zmt_a_",
            "zmt_a",
            &text[..text.len() - 1],
            &format!("{text}x"),
            &format!("zmt_a_{secret}"),
            &format!("zmt_../tokens/a_{secret}"),
            &format!("zmt_broken_{secret}"),
            &text.to_uppercase(),
        ] {
            assert_eq!(tokens.recognise(wrong), Err(Wrong::Unknown), "{wrong}");
        }
        let (listed, failures) = tokens.list().unwrap();
        assert_eq!((listed.len(), failures.len()), (2, 1));
    }

    #[test]
    fn a_token_is_good_for_its_time() {
        let (folder, tokens) = tokens();
        let text = tokens.create("old", Role::Admin, DAY).unwrap();
        let path = folder.path().join("tokens/old.json");
        let mut token: Token = file::read_json(&path).unwrap();
        token.expires_at = Timestamp::now();
        file::replace_json(&path, &token).unwrap();
        assert_eq!(tokens.recognise(&text), Err(Wrong::Expired));
        for name in ["", "A", "a_b", "a/b", "-a", "..", &"x".repeat(64)] {
            assert_eq!(
                tokens.create(name, Role::Viewer, DAY).unwrap_err().class,
                Class::Usage,
                "{name}"
            );
        }
        assert!(tokens.create("none", Role::Viewer, SignedDuration::ZERO).is_err());
        assert!(tokens.create("ever", Role::Viewer, DAY * 4000).is_err());
    }

    #[test]
    fn times_are_read_and_nonsense_is_not() {
        assert_eq!(lifetime("30d").unwrap(), DAY * 30);
        assert_eq!(lifetime("90s").unwrap(), SignedDuration::from_secs(90));
        for wrong in ["", "d", "30", "-1d", "1.5h", "3w", "99999999999d", "1é"] {
            assert!(lifetime(wrong).is_err(), "{wrong}");
        }
    }
}
