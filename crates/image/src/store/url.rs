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
