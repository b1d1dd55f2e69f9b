//! Flags that take one of a few words: their values, by word. The same table reads a flag and writes a machine file.

use clap::builder::{PossibleValuesParser, TypedValueParser};
use zmachine_hypervisor::accel;
use zmachine_hypervisor::choice::Requested;
use zmachine_rootfs::Prefetch;
use zmachine_spec::{JailChoice, ModeChoice, RootfsChoice};

/// What a flag may say, and what each word means.
pub(crate) type Words<T> = &'static [(&'static str, T)];

/// `--accel`
pub(crate) const ACCEL: Words<accel::Requested> = &[
    ("auto", accel::Requested::Auto),
    ("kvm", accel::Requested::Kvm),
    ("tcg", accel::Requested::Tcg),
];

/// `--hypervisor`
pub(crate) const HYPERVISOR: Words<Requested> = &[
    ("auto", Requested::Auto),
    ("qemu", Requested::Qemu),
    ("cloud-hypervisor", Requested::CloudHypervisor),
];

/// `--mode`
pub(crate) const MODE: Words<ModeChoice> = &[
    ("auto", ModeChoice::Auto),
    ("container", ModeChoice::Container),
    ("vm", ModeChoice::Vm),
];

/// `--rootfs`
pub(crate) const ROOTFS: Words<RootfsChoice> = &[
    ("auto", RootfsChoice::Auto),
    ("block", RootfsChoice::Block),
    ("virtiofs", RootfsChoice::Virtiofs),
];

/// `--prefetch`
pub(crate) const PREFETCH: Words<Prefetch> = &[
    ("none", Prefetch::None),
    ("hints", Prefetch::Hints),
    ("all", Prefetch::All),
];

/// `--jail`
pub(crate) const JAIL: Words<JailChoice> = &[("auto", JailChoice::Auto), ("off", JailChoice::Off)];

/// The value of a word.
pub(crate) fn value<T: Copy>(words: Words<T>, word: &str) -> Option<T> {
    words.iter().find(|(name, _)| *name == word).map(|(_, value)| *value)
}

/// The word for a value.
pub(crate) fn word<T: PartialEq>(words: Words<T>, value: &T) -> Option<&'static str> {
    words.iter().find(|(_, known)| known == value).map(|(name, _)| *name)
}

/// What reads such a flag.
pub(crate) fn parser<T: Copy + Send + Sync + 'static>(words: Words<T>) -> impl TypedValueParser<Value = T> {
    PossibleValuesParser::new(words.iter().map(|(name, _)| *name))
        .try_map(move |word| value(words, &word).ok_or("there is no such word"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_value_has_one_word() {
        fn check<T: Copy + PartialEq + std::fmt::Debug>(words: Words<T>) {
            for (name, known) in words {
                assert_eq!((word(words, known), value(words, name)), (Some(*name), Some(*known)));
            }
            assert_eq!(value(words, "other"), None);
        }
        check(ACCEL);
        check(HYPERVISOR);
        check(MODE);
        check(ROOTFS);
        check(PREFETCH);
        check(JAIL);
    }
}
