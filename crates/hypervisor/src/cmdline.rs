//! The kernel command line of a machine booted by its kernel directly: a pure function. Every word has its reason.

use crate::Accel;

/// Work of the kernel's start that no machine here has a use for; a kernel without such a name ignores it.
/// * `jent_mod_init`: measures the jitter of an entropy source; the CPU has its own. 94 million instructions (own 6.12 kernel).
/// * `trace_eval_init`: makes enum names in the descriptions of trace events readable as numbers. 123 million of 664 (Debian 6.12).
/// * `load_system_certificate_list`: reads the certificates for signed modules; ours are not signed. 28 million (Debian 6.12).
const BLACKLIST: &str = "initcall_blacklist=jent_mod_init,trace_eval_init,load_system_certificate_list";

/// What every directly booted machine needs on its command line; the caller appends what is its own.
///
/// Figures: under emulation, each word alone; instructions are guest instructions to init, which host load does not change,
/// times are medians of an own 6.12 kernel on q35. Nothing was measured with KVM.
pub fn kernel_cmdline(accel: Accel, cpus: u32) -> String {
    let mut words = vec![
        // The serial port is there from the first message on, so a panic at any time reaches the log.
        "console=ttyS0",
        // Only problems: a line costs a device exit per byte. A panic is printed nevertheless.
        "quiet",
        // A panic ends the machine at once where no pvpanic driver is loaded yet; with one, the hypervisor reports it.
        "panic=-1",
        // The shortest way to restart: a triple fault, which the hypervisor reports as a reset.
        "reboot=t",
        // The self-tests of the ciphers run at every boot and protect nobody here.
        "cryptomgr.notests",
        // A scheduling group for every session is for desktops; here it is made for every process that is started, and taken apart after it.
        "noautogroup",
        BLACKLIST,
    ];
    if accel == Accel::Tcg {
        // The emulated counter is the host's, it never stops; do not watch it. Its frequency is the host's to tell:
        // [`with_counter`].
        words.push("tsc=reliable");
        // Under load the check of the timer interrupt fails and panics ("IO-APIC + timer doesn't work!").
        words.push("no_timer_check");
        if cpus == 1 {
            // Do not calibrate a timer that one emulated CPU has no need of: 100 ms.
            words.push("noapictimer");
        }
    }
    if cpus == 1 {
        // Do not patch the kernel's text for one CPU and (when it is emulated) translate it all again: 230 ms.
        words.push("noreplace-smp");
    }
    words.join(" ")
}

/// The command line of a kernel of ours that is emulated, with the frequency of its time stamp counter in kHz: the one that it
/// measures itself is wrong, and so its clock for ever, when this host had something else to do meanwhile. A kernel takes a
/// frequency that it is given without measuring, and later improves it by at most one part in a hundred.
pub(crate) fn with_counter(cmdline: &str, khz: Option<u32>) -> String {
    match khz {
        Some(khz) => format!("{cmdline} tsc_early_khz={khz}"),
        None => cmdline.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_emulated_cpu_gets_everything() {
        assert_eq!(
            kernel_cmdline(Accel::Tcg, 1),
            "console=ttyS0 quiet panic=-1 reboot=t cryptomgr.notests noautogroup initcall_blacklist=jent_mod_init,trace_eval_init,load_system_certificate_list \
             tsc=reliable no_timer_check noapictimer noreplace-smp"
        );
    }

    #[test]
    fn a_kernel_is_told_the_frequency_that_is_known() {
        assert_eq!(with_counter("quiet", Some(2_500_000)), "quiet tsc_early_khz=2500000");
        assert_eq!(with_counter("quiet", None), "quiet");
    }

    #[test]
    fn several_cpus_keep_their_timers_and_their_patching() {
        let line = kernel_cmdline(Accel::Tcg, 2);
        assert!(line.contains("no_timer_check") && !line.contains("noapictimer") && !line.contains("noreplace-smp"));
    }

    #[test]
    fn what_works_around_emulation_is_left_out_with_kvm() {
        let line = kernel_cmdline(Accel::Kvm, 1);
        assert!(!line.contains("no_timer_check") && !line.contains("tsc="), "{line}");
    }
}
