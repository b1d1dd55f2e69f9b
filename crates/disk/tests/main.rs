//! Disks and seeds beside the programs of others that write and read them.

mod cloud_init;
mod foreign;
mod gpt;
mod qcow2;
mod seed;

/// Whether a program is here; says that the test is skipped if not.
fn has(program: &str) -> bool {
    let lack = zmachine_testkit::lacking(&[zmachine_testkit::Need::Command(program)]);
    if let Some(lack) = &lack {
        zmachine_testkit::skip(lack);
    }
    lack.is_none()
}
