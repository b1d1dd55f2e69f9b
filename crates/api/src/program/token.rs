//! `token`: the tokens of this home.

use std::io::Write;

use clap::{Args, Subcommand};
use jiff::{SignedDuration, Timestamp};
use serde_json::json;
use zmachine_access::Role;
use zmachine_access::tokens::{Token, Tokens, lifetime};
use zmachine_spec::Failure;

use super::state_dirs;

#[derive(Debug, Subcommand)]
pub(crate) enum TokenCommand {
    /// Make a token, and print it: this once
    Create(CreateArgs),
    /// List tokens: what for, and until when
    Ls {
        /// As JSON
        #[arg(long)]
        json: bool,
    },
    /// Remove tokens: connections that they have open end as well
    Rm {
        #[arg(value_name = "NAME", required = true)]
        names: Vec<String>,
    },
}

#[derive(Debug, Args)]
pub(crate) struct CreateArgs {
    /// Who or what will use it
    #[arg(value_name = "NAME")]
    name: String,
    /// viewer (looks), operator (also starts, stops and enters machines) or admin (everything; that is root on this host)
    #[arg(long)]
    role: Role,
    /// How long it is valid: 30d, 12h
    #[arg(long, value_name = "TIME", default_value = "30d", value_parser = lifetime)]
    expires: SignedDuration,
}

pub(crate) fn token(command: &TokenCommand) -> Result<u8, Failure> {
    let tokens = Tokens::of(&state_dirs()?.0);
    match command {
        TokenCommand::Create(args) => {
            let text = tokens.create(&args.name, args.role, args.expires)?;
            writeln!(std::io::stdout(), "{text}")?;
        }
        TokenCommand::Ls { json } => list(&tokens, *json)?,
        TokenCommand::Rm { names } => names.iter().try_for_each(|name| tokens.remove(name))?,
    }
    Ok(0)
}

fn list(tokens: &Tokens, as_json: bool) -> Result<(), Failure> {
    let (listed, failures) = tokens.list()?;
    for failure in failures {
        eprintln!("warning: {failure}");
    }
    let now = Timestamp::now();
    let state = |token: &Token| if token.is_expired(now) { "expired" } else { "valid" };
    let mut out = std::io::stdout().lock();
    if as_json {
        let shown: Vec<_> = listed
            .iter()
            .map(|token| {
                json!({
                    "name": token.name, "role": token.role, "state": state(token),
                    "created_at": token.created_at, "expires_at": token.expires_at,
                })
            })
            .collect();
        serde_json::to_writer_pretty(&mut out, &shown).map_err(std::io::Error::from)?;
        writeln!(out)?;
        return Ok(());
    }
    writeln!(out, "{:24} {:9} {:8} {:21} EXPIRES", "NAME", "ROLE", "STATE", "CREATED")?;
    for token in &listed {
        let second = |time: Timestamp| time.strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
        writeln!(
            out,
            "{:24} {:9} {:8} {:21} {}",
            token.name,
            token.role.word(),
            state(token),
            second(token.created_at),
            second(token.expires_at)
        )?;
    }
    Ok(())
}
