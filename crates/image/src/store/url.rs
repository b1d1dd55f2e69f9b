//! Reading of store URLs, as far as all kinds share it.

/// `url` without its user, password, query and fragment, for messages and for files that others may read.
pub fn redact(url: &str) -> String {
    let bare = url.split(['?', '#']).next().unwrap_or_default();
    let Some((scheme, rest)) = bare.split_once("://") else {
        return bare.to_owned();
    };
    let (authority, path) = match rest.find('/') {
        Some(at) => rest.split_at(at),
        None => (rest, ""),
    };
    let host = authority.rsplit_once('@').map_or(authority, |(_, host)| host);
    format!("{scheme}://{host}{path}")
}

/// As [`redact`], but what a reader needs to find the store stays: the region of a bucket.
pub fn without_credentials(url: &str) -> String {
    let bare = redact(url);
    let query = url.split_once('?').map_or("", |(_, query)| query);
    let region = query.split(['&', '#']).find(|field| field.starts_with("region="));
    match region {
        Some(region) if bare.starts_with("s3") => format!("{bare}?{region}"),
        _ => bare,
    }
}

/// Undoes `%XX`; `None` for a broken one, or for bytes that are no text.
pub(crate) fn percent_decode(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((byte, behind)) = rest.split_first() {
        rest = behind;
        if *byte != b'%' {
            bytes.push(*byte);
            continue;
        }
        let digits = rest
            .get(..2)
            .filter(|digits| digits.iter().all(u8::is_ascii_hexdigit))?;
        bytes.push(u8::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()?);
        rest = &rest[2..];
    }
    String::from_utf8(bytes).ok()
}

#[cfg(test)]
mod tests {
    use super::redact;

    #[test]
    fn only_the_credentials_and_the_query_go() {
        assert_eq!(redact("https://a:b@h:1/p?token=x#f"), "https://h:1/p");
        assert_eq!(redact("dir:///srv/a@b"), "dir:///srv/a@b");
        assert_eq!(redact("zdb://:pw@[::1]:9900/ns"), "zdb://[::1]:9900/ns");
        assert_eq!(redact("nothing"), "nothing");
    }
}
