//! From the system call filter of an OCI specification (`linux.seccomp`) to a program for the guest's kernel (classic BPF). Pure.
//!
//! ```text
//! architecture? ── x86-64: number beyond all that the profile knows -> ENOSYS; number == N -> rules of N; default action
//!               └─ i386, if the profile has it: the same with its numbers
//!               └─ anything else: the process is killed
//! ```
//! # Invariants
//! Of several rules for a system call, the first whose conditions hold decides. System calls that nobody knew when this was built are
//! passed over, as other runtimes do: the default action is theirs.

use std::collections::BTreeMap;

use syscalls::{x86, x86_64};

use crate::error::ShimError;
use crate::oci::{Condition, Seccomp, SystemCallRule};

/// The most instructions that the kernel takes (`BPF_MAXINSNS`).
const LIMIT: usize = 4096;

/// `AUDIT_ARCH_X86_64` and `AUDIT_ARCH_I386` (linux/audit.h).
const X86_64: u32 = 0xc000_003e;
const I386: u32 = 0x4000_0003;

/// Numbers of the x32 interface begin here; no kernel of ours has it.
const X32: u32 = 0x4000_0000;

/// Where `struct seccomp_data` has the number, the architecture, and the first argument.
const NUMBER: u32 = 0;
const ARCHITECTURE: u32 = 4;
const ARGUMENTS: u32 = 16;

const KILL_PROCESS: u32 = 0x8000_0000;
const ALLOW: u32 = 0x7fff_0000;
const LOG: u32 = 0x7ffc_0000;
const TRACE: u32 = 0x7ff0_0000;
const ERRNO: u32 = 0x0005_0000;
const TRAP: u32 = 0x0003_0000;
const KILL_THREAD: u32 = 0;

const EPERM: u32 = 1;
const ENOSYS: u32 = 38;

/// Load a word, AND, jump always, jumps by comparison, return.
const LOAD: u16 = 0x20;
const AND: u16 = 0x54;
const JUMP: u16 = 0x05;
const IF_EQUAL: u16 = 0x15;
const IF_GREATER: u16 = 0x25;
const IF_NOT_LESS: u16 = 0x35;
const RETURN: u16 = 0x06;

/// One instruction, as the kernel has it in memory.
const fn instruction(code: u16, yes: u8, no: u8, value: u32) -> u64 {
    code as u64 | (yes as u64) << 16 | (no as u64) << 24 | (value as u64) << 32
}

/// The program of a filter, one instruction (`struct sock_filter`) in each number, the least significant byte first.
///
/// # Errors
/// For actions, architectures and comparisons that are none, and filters that are too large.
pub(crate) fn program(filter: &Seccomp) -> Result<Vec<u64>, ShimError> {
    let default = action(&filter.default_action, filter.default_errno_ret)?;
    let mut has_i386 = false;
    for name in &filter.architectures {
        match name.as_str() {
            "SCMP_ARCH_X86_64" | "SCMP_ARCH_X32" => {}
            "SCMP_ARCH_X86" => has_i386 = true,
            // The list names those of other machines as well.
            name if name.starts_with("SCMP_ARCH_") => {}
            name => return Err(invalid(format!("there is no architecture '{name}'"))),
        }
    }
    let number = |name: &str| name.parse::<x86_64::Sysno>().ok().map(|number| number.id() as u32);
    let native = block(filter, default, &number)?;
    let number = |name: &str| name.parse::<x86::Sysno>().ok().map(|number| number.id() as u32);
    let i386 = match has_i386 {
        true => block(filter, default, &number)?,
        false => Vec::new(),
    };
    let mut program = vec![instruction(LOAD, 0, 0, ARCHITECTURE)];
    for (architecture, block) in [(X86_64, native), (I386, i386)] {
        if block.is_empty() {
            continue;
        }
        program.push(instruction(IF_EQUAL, 1, 0, architecture));
        program.push(instruction(JUMP, 0, 0, block.len() as u32));
        program.extend(block);
    }
    program.push(instruction(RETURN, 0, 0, KILL_PROCESS));
    match program.len() <= LIMIT {
        true => Ok(program),
        false => Err(invalid(format!(
            "it takes {} instructions, and the kernel takes {LIMIT} at most",
            program.len()
        ))),
    }
}

fn invalid(what: String) -> ShimError {
    ShimError::Invalid(format!("the system call filter cannot be used: {what}"))
}

fn action(name: &str, errno: Option<u32>) -> Result<u32, ShimError> {
    let errno = errno.unwrap_or(EPERM) & 0xffff;
    Ok(match name {
        "SCMP_ACT_KILL" | "SCMP_ACT_KILL_THREAD" => KILL_THREAD,
        "SCMP_ACT_KILL_PROCESS" => KILL_PROCESS,
        "SCMP_ACT_TRAP" => TRAP,
        "SCMP_ACT_ERRNO" => ERRNO | errno,
        "SCMP_ACT_TRACE" => TRACE | errno,
        "SCMP_ACT_ALLOW" => ALLOW,
        "SCMP_ACT_LOG" => LOG,
        "SCMP_ACT_NOTIFY" => {
            let what =
                "there is no listener for SCMP_ACT_NOTIFY in a machine: use another action, or another runtime class";
            return Err(ShimError::Unsupported(what.to_owned()));
        }
        other => return Err(invalid(format!("there is no action '{other}'"))),
    })
}

/// What is done about a system call when all conditions hold.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Rule {
    conditions: Vec<Condition>,
    action: u32,
}

/// The part for one architecture, with the numbers that `number` knows.
fn block(filter: &Seccomp, default: u32, number: &dyn Fn(&str) -> Option<u32>) -> Result<Vec<u64>, ShimError> {
    let mut rules: BTreeMap<u32, Vec<Rule>> = BTreeMap::new();
    let mut last = 0;
    for entry in &filter.syscalls {
        let action = action(&entry.action, entry.errno_ret)?;
        for number in entry.names.iter().filter_map(|name| number(name)) {
            last = last.max(number);
            // What happens anyway is no rule.
            if action != default {
                rules.entry(number).or_default().extend(alternatives(entry, action));
            }
        }
    }
    let mut block = vec![instruction(LOAD, 0, 0, NUMBER)];
    let absent = instruction(RETURN, 0, 0, ERRNO | ENOSYS);
    block.extend([instruction(IF_NOT_LESS, 0, 1, X32), absent]);
    // A profile that forbids what it does not name was written before newer system calls were there. Programs that try one of them
    // have another way when it is not there, and none when it is forbidden.
    let is_permissive = matches!(default & 0xffff_0000, ALLOW | LOG | TRACE);
    if !is_permissive && last > 0 {
        block.extend([instruction(IF_GREATER, 0, 1, last), absent]);
    }
    for (number, rules) in &rules {
        let mut body = Vec::new();
        let mut is_decided = false;
        for rule in rules {
            if is_decided {
                break;
            }
            body.extend(one_rule(rule)?);
            is_decided = rule.conditions.is_empty();
        }
        if !is_decided {
            body.push(instruction(RETURN, 0, 0, default));
        }
        match u8::try_from(body.len()) {
            Ok(length) => block.push(instruction(IF_EQUAL, 0, length, *number)),
            Err(_) => block.extend([
                instruction(IF_EQUAL, 1, 0, *number),
                instruction(JUMP, 0, 0, body.len() as u32),
            ]),
        }
        block.extend(body);
    }
    block.push(instruction(RETURN, 0, 0, default));
    Ok(block)
}

/// Several conditions on one argument are alternatives, as libseccomp's users have it; on several arguments, all have to hold.
fn alternatives(entry: &SystemCallRule, action: u32) -> Vec<Rule> {
    let is_repeated =
        |condition: &Condition| entry.args.iter().filter(|other| other.index == condition.index).count() > 1;
    match entry.args.iter().any(is_repeated) {
        true => entry
            .args
            .iter()
            .map(|condition| Rule {
                conditions: vec![condition.clone()],
                action,
            })
            .collect(),
        false => vec![Rule {
            conditions: entry.args.clone(),
            action,
        }],
    }
}

/// Where an instruction of a condition leads: to the next one, to the end of the condition, which holds, or out of the rule.
#[derive(Debug, Clone, Copy)]
enum To {
    Next,
    Holds,
    Fails,
}

fn one_rule(rule: &Rule) -> Result<Vec<u64>, ShimError> {
    let conditions = rule.conditions.iter().map(steps).collect::<Result<Vec<_>, _>>()?;
    // With the return at the end.
    let length = conditions.iter().map(Vec::len).sum::<usize>() + 1;
    let mut body = Vec::new();
    for steps in conditions {
        let end = body.len() + steps.len();
        for (code, value, yes, no) in steps {
            let here = body.len() + 1;
            // Six arguments have six conditions at most: no distance is beyond a byte.
            let distance = |to: To| match to {
                To::Next => 0,
                To::Holds => (end - here) as u8,
                To::Fails => (length - here) as u8,
            };
            body.push(instruction(code, distance(yes), distance(no), value));
        }
    }
    body.push(instruction(RETURN, 0, 0, rule.action));
    Ok(body)
}

/// Compares the upper half of an argument, then the lower one.
fn steps(condition: &Condition) -> Result<Vec<(u16, u32, To, To)>, ShimError> {
    use To::{Fails, Holds, Next};
    if condition.index > 5 {
        return Err(invalid(format!("there is no argument {}", condition.index)));
    }
    let lower = ARGUMENTS + 8 * condition.index;
    let load = |at| (LOAD, at, Next, Next);
    let halves = |value: u64| ((value >> 32) as u32, value as u32);
    let (high, low) = halves(condition.value);
    let (upper, lower) = (load(lower + 4), load(lower));
    let ordered = |above: To, below: To, compare: u16, yes: To, no: To| {
        vec![
            upper,
            (IF_GREATER, high, above, Next),
            (IF_EQUAL, high, Next, below),
            lower,
            (compare, low, yes, no),
        ]
    };
    Ok(match condition.op.as_str() {
        "SCMP_CMP_EQ" => vec![
            upper,
            (IF_EQUAL, high, Next, Fails),
            lower,
            (IF_EQUAL, low, Next, Fails),
        ],
        "SCMP_CMP_NE" => vec![
            upper,
            (IF_EQUAL, high, Next, Holds),
            lower,
            (IF_EQUAL, low, Fails, Next),
        ],
        "SCMP_CMP_GT" => ordered(Holds, Fails, IF_GREATER, Next, Fails),
        "SCMP_CMP_GE" => ordered(Holds, Fails, IF_NOT_LESS, Next, Fails),
        "SCMP_CMP_LT" => ordered(Fails, Holds, IF_NOT_LESS, Fails, Next),
        "SCMP_CMP_LE" => ordered(Fails, Holds, IF_GREATER, Fails, Next),
        "SCMP_CMP_MASKED_EQ" => {
            // The value is a mask here, and the second one what is left.
            let (high_left, low_left) = halves(condition.value_two);
            vec![
                upper,
                (AND, high, Next, Next),
                (IF_EQUAL, high_left, Next, Fails),
                lower,
                (AND, low, Next, Next),
                (IF_EQUAL, low_left, Next, Fails),
            ]
        }
        other => return Err(invalid(format!("there is no comparison '{other}'"))),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the kernel would say, for a system call that a program makes.
    fn run(program: &[u64], architecture: u32, number: u32, arguments: [u64; 6]) -> u32 {
        let mut data = vec![number, architecture, 0, 0];
        data.extend(
            arguments
                .iter()
                .flat_map(|value| [*value as u32, (*value >> 32) as u32]),
        );
        let (mut at, mut accumulator) = (0, 0);
        loop {
            let bytes = program[at].to_le_bytes();
            let value = u32::from_le_bytes(bytes[4..].try_into().unwrap());
            at += 1;
            let holds = match u16::from_le_bytes([bytes[0], bytes[1]]) {
                LOAD => {
                    accumulator = data[value as usize / 4];
                    continue;
                }
                AND => {
                    accumulator &= value;
                    continue;
                }
                JUMP => {
                    at += value as usize;
                    continue;
                }
                RETURN => return value,
                IF_EQUAL => accumulator == value,
                IF_GREATER => accumulator > value,
                IF_NOT_LESS => accumulator >= value,
                other => panic!("{other}"),
            };
            at += usize::from(if holds { bytes[2] } else { bytes[3] });
        }
    }

    fn profile(json: serde_json::Value) -> Seccomp {
        serde_json::from_value(json).unwrap()
    }

    fn native(program: &[u64], name: &str, first: u64) -> u32 {
        let number = name.parse::<x86_64::Sysno>().unwrap().id() as u32;
        run(program, X86_64, number, [first, 0, 0, 0, 0, 0])
    }

    #[test]
    fn what_is_not_named_has_the_default_and_what_is_newer_is_not_there() {
        let program = program(&profile(serde_json::json!({
            "defaultAction": "SCMP_ACT_ERRNO", "architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86"],
            "syscalls": [
                {"names": ["read", "statx", "no_such_call"], "action": "SCMP_ACT_ALLOW"},
                {"names": ["clone3"], "action": "SCMP_ACT_ERRNO", "errnoRet": 38},
            ],
        })))
        .unwrap();
        assert_eq!(native(&program, "read", 0), ALLOW);
        assert_eq!(native(&program, "write", 0), ERRNO | EPERM);
        assert_eq!(native(&program, "clone3", 0), ERRNO | ENOSYS);
        assert_eq!(run(&program, X86_64, 100_000, [0; 6]), ERRNO | ENOSYS);
        assert_eq!(run(&program, X86_64, X32, [0; 6]), ERRNO | ENOSYS);
        // 32 bits: 3 is `read`, 4 is `write`.
        assert_eq!(run(&program, I386, 3, [0; 6]), ALLOW);
        assert_eq!(run(&program, I386, 4, [0; 6]), ERRNO | EPERM);
        assert_eq!(run(&program, 7, 3, [0; 6]), KILL_PROCESS);
    }

    #[test]
    fn a_profile_that_forbids_a_little_allows_the_rest_and_no_other_architecture() {
        let program = program(&profile(serde_json::json!({
            "defaultAction": "SCMP_ACT_ALLOW",
            "syscalls": [{"names": ["chmod", "fchmodat"], "action": "SCMP_ACT_ERRNO"}],
        })))
        .unwrap();
        assert_eq!(native(&program, "chmod", 0), ERRNO | EPERM);
        assert_eq!(native(&program, "chown", 0), ALLOW);
        assert_eq!(run(&program, X86_64, 100_000, [0; 6]), ALLOW);
        assert_eq!(run(&program, I386, 3, [0; 6]), KILL_PROCESS);
    }

    #[test]
    fn arguments_are_compared_with_all_of_their_64_bits() {
        let at = 0x1_0000_0005u64;
        // The comparison, and what it says of one less, the same and one more; then of what is much smaller and much larger.
        let cases = [
            ("SCMP_CMP_EQ", [false, true, false, false, false]),
            ("SCMP_CMP_NE", [true, false, true, true, true]),
            ("SCMP_CMP_LT", [true, false, false, true, false]),
            ("SCMP_CMP_LE", [true, true, false, true, false]),
            ("SCMP_CMP_GT", [false, false, true, false, true]),
            ("SCMP_CMP_GE", [false, true, true, false, true]),
        ];
        for (op, expected) in cases {
            let program = program(&profile(serde_json::json!({
                "defaultAction": "SCMP_ACT_ERRNO",
                "syscalls": [{"names": ["personality"], "action": "SCMP_ACT_ALLOW",
                    "args": [{"index": 0, "value": at, "op": op}, {"index": 5, "value": 0, "op": "SCMP_CMP_EQ"}]}],
            })))
            .unwrap();
            let values = [at - 1, at, at + 1, 0xffff_ffff, 0x2_0000_0000];
            let said = values.map(|value| native(&program, "personality", value) == ALLOW);
            assert_eq!(said, expected, "{op}");
        }
    }

    #[test]
    fn masks_and_alternatives_are_as_profiles_mean_them() {
        let program = program(&profile(serde_json::json!({
            "defaultAction": "SCMP_ACT_ERRNO",
            "syscalls": [
                {"names": ["clone"], "action": "SCMP_ACT_ALLOW",
                    "args": [{"index": 0, "value": 0x7e02_0000, "valueTwo": 0, "op": "SCMP_CMP_MASKED_EQ"}]},
                {"names": ["personality"], "action": "SCMP_ACT_ALLOW", "args": [
                    {"index": 0, "value": 0, "op": "SCMP_CMP_EQ"}, {"index": 0, "value": 8, "op": "SCMP_CMP_EQ"}]},
            ],
        })))
        .unwrap();
        assert_eq!(native(&program, "clone", 0x11), ALLOW);
        assert_eq!(native(&program, "clone", 0x1000_0011), ERRNO | EPERM);
        assert_eq!(
            [0, 8, 4].map(|value| native(&program, "personality", value) == ALLOW),
            [true, true, false]
        );
    }

    #[test]
    fn what_no_kernel_takes_is_refused_with_its_name() {
        let words = |json| program(&profile(json)).unwrap_err().to_string();
        let one = |action: &str, args: serde_json::Value| {
            words(serde_json::json!({"defaultAction": "SCMP_ACT_ALLOW",
                "syscalls": [{"names": ["read"], "action": action, "args": args}]}))
        };
        assert!(one("SCMP_ACT_NOTIFY", serde_json::json!([])).contains("NOTIFY"));
        assert!(one("SCMP_ACT_X", serde_json::json!([])).contains("SCMP_ACT_X"));
        let condition = |index: u32, op: &str| serde_json::json!([{"index": index, "value": 0, "op": op}]);
        assert!(one("SCMP_ACT_ERRNO", condition(6, "SCMP_CMP_EQ")).contains("argument 6"));
        assert!(one("SCMP_ACT_ERRNO", condition(0, "SCMP_CMP_X")).contains("SCMP_CMP_X"));
        let many: Vec<_> = (0..900)
            .map(|value| {
                serde_json::json!({"names": ["read"], "action": "SCMP_ACT_ERRNO",
                "args": [{"index": 0, "value": value, "op": "SCMP_CMP_EQ"}]})
            })
            .collect();
        assert!(words(serde_json::json!({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": many})).contains("4096"));
    }
}
