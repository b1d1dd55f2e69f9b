//! The small init of `--init`: PID 1 of the container, in front of a program that is not made to be one.
//!
//! # What it does
//! It starts the program as its child, passes every signal on to it, reaps whatever is orphaned, and ends with the
//! program's status as a shell tells it: the code, or 128 + signal. The kernel ends everything else in the namespace then.
//!
//! It is the agent's own executable, started again with the user, environment and working directory of the program: so
//! nothing of the agent's memory is in the container, and `/proc/1/environ` and `/proc/1/fd` are what a program expects.
//!
//! # Invariants
//! One thread, which blocks all signals and takes them one by one: none is lost, and the kernel drops none for the lack of
//! a handler, as it does for PID 1 otherwise.

#![allow(unsafe_code)]

use std::ffi::{CString, OsString};
use std::mem::zeroed;
use std::os::unix::ffi::OsStringExt;
use std::ptr::{null, null_mut};

use rustix::process::{WaitOptions, wait};
use zmachine_agent_protocol::ExitStatus;

use crate::process::{DEFAULT_PATH, REPORT, candidates, execute, pointers, report};
use crate::reaper::exit_status;

/// The first argument that makes the agent's executable this init.
pub(crate) const NAME: &str = "zmachine-init";

/// Runs the program and its arguments, which follow after `--`; the exit status.
pub(crate) fn run(arguments: impl Iterator<Item = OsString>) -> i32 {
    let arguments: Vec<CString> = arguments
        .skip_while(|argument| argument != "--")
        .skip(1)
        .filter_map(|argument| CString::new(argument.into_vec()).ok())
        .collect();
    let program = arguments.first().map(|program| program.to_string_lossy().into_owned());
    let path = std::env::var("PATH").unwrap_or_else(|_| DEFAULT_PATH.to_owned());
    let files: Vec<CString> = candidates(&program.unwrap_or_default(), &path)
        .into_iter()
        .filter_map(|file| CString::new(file).ok())
        .collect();
    let all = block_all_signals();
    // SAFETY: the string is static and NUL-terminated; prctl copies it. The descriptor is only marked.
    unsafe {
        libc::prctl(libc::PR_SET_NAME, c"zmachine-init".as_ptr());
        libc::fcntl(REPORT, libc::F_SETFD, libc::FD_CLOEXEC);
    }
    // SAFETY: this process has one thread, so the child may run any code.
    match unsafe { libc::fork() } {
        0 => become_program(&files, &arguments),
        -1 => 125,
        child => {
            // SAFETY: the descriptor is nobody else's; with this copy gone, the agent learns of the child's exec.
            unsafe { libc::close(REPORT) };
            serve(child, &all)
        }
    }
}

fn block_all_signals() -> libc::sigset_t {
    // SAFETY: `all` is a plain bit set that sigfillset initialises before it is read.
    unsafe {
        let mut all = zeroed::<libc::sigset_t>();
        libc::sigfillset(&mut all);
        libc::sigprocmask(libc::SIG_SETMASK, &all, null_mut());
        all
    }
}

/// The child: leads a process group of its own, in the foreground of a terminal if there is one, so that what is typed
/// there reaches it and not the init.
fn become_program(files: &[CString], arguments: &[CString]) -> ! {
    // SAFETY: numbers only, and a bit set that is initialised before it is read. The terminal is handed over while the
    // signal that would stop a process in the background is blocked. Without a terminal the call fails, and is not needed.
    unsafe {
        libc::setpgid(0, 0);
        libc::tcsetpgrp(0, libc::getpid());
        let mut none = zeroed::<libc::sigset_t>();
        libc::sigemptyset(&mut none);
        libc::sigprocmask(libc::SIG_SETMASK, &none, null_mut());
    }
    // The environment that this process was given, untouched since.
    let variables: Vec<CString> = std::env::vars_os()
        .map(|(name, value)| [name.into_vec(), value.into_vec()].join(&b'='))
        .filter_map(|variable| CString::new(variable).ok())
        .collect();
    let (step, errno) = execute(files, &pointers(arguments), &pointers(&variables));
    report(REPORT, step, errno)
}

/// Passes signals on and reaps, until the program is gone.
fn serve(child: i32, all: &libc::sigset_t) -> i32 {
    loop {
        // SAFETY: the set is initialised; no information about the signal is asked for.
        match unsafe { libc::sigwaitinfo(all, null::<libc::siginfo_t>().cast_mut()) } {
            libc::SIGCHLD => {
                if let Some(status) = reap(child) {
                    return status;
                }
            }
            // Interrupted, which blocked signals do not; a stop and a continuation of this process do.
            -1 => {}
            // SAFETY: numbers only; the child is not reaped yet, so its number is not another process's.
            signal => drop(unsafe { libc::kill(child, signal) }),
        }
    }
}

/// Reaps all that is there to reap; the program's status if it was among that.
fn reap(child: i32) -> Option<i32> {
    let mut ended = None;
    while let Ok(Some((pid, status))) = wait(WaitOptions::NOHANG) {
        if pid.as_raw_nonzero().get() == child {
            ended = exit_status(status).map(ExitStatus::shell_code).map(i32::from);
        }
    }
    ended
}
