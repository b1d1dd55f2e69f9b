//! Flags of `run` and `create` for health checks, as docker has them.

use clap::Args;
use zmachine_spec::health::parse_time;
use zmachine_spec::{Class, Failure, HealthRequest, HealthTest, Setting};

/// The flags.
#[derive(Debug, Args)]
pub(crate) struct HealthArgs {
    /// Command that succeeds in the machine when all is well, for its shell; or ["CMD","PROGRAM","ARGUMENT"] for none
    #[arg(long, value_name = "COMMAND")]
    health_cmd: Option<String>,
    /// Time between two health checks; the image's, or 30s, when not given
    #[arg(long, value_name = "TIME")]
    health_interval: Option<String>,
    /// Time that one may take; the image's, or 30s, when not given
    #[arg(long, value_name = "TIME")]
    health_timeout: Option<String>,
    /// Time after a start in which failures do not count
    #[arg(long, value_name = "TIME")]
    health_start_period: Option<String>,
    /// Time between two health checks in that time; 5s when nobody says something else
    #[arg(long, value_name = "TIME")]
    health_start_interval: Option<String>,
    /// So many failures in a row mean that it is unhealthy; the image's, or 3, when not given
    #[arg(long, value_name = "N")]
    health_retries: Option<String>,
    /// Make no health checks, whatever the image says
    #[arg(long)]
    no_healthcheck: bool,
}

impl HealthArgs {
    /// What the flags ask for.
    pub(super) fn request(&self) -> Result<HealthRequest, Failure> {
        let time = |flag: &str, text: &Option<String>| match text {
            Some(text) => parse_time(text).map_err(|failure| Failure {
                message: format!("{flag}: {}", failure.message),
                ..failure
            }),
            None => Ok(None),
        };
        let retries = match self.health_retries.as_deref() {
            Some(text) => text.parse::<u32>().map(Some).map_err(|_| {
                Failure::new(Class::Usage, format!("--health-retries {text} is no number"))
                    .hint("write how many failures in a row mean that it is unhealthy")
                    .about(Setting::Health)
            })?,
            None => None,
        };
        let request = HealthRequest {
            test: self.health_cmd.as_deref().map(str::parse).transpose()?,
            interval_ms: time("--health-interval", &self.health_interval)?,
            timeout_ms: time("--health-timeout", &self.health_timeout)?,
            start_period_ms: time("--health-start-period", &self.health_start_period)?,
            start_interval_ms: time("--health-start-interval", &self.health_start_interval)?,
            retries: retries.filter(|n| *n > 0),
        };
        match (self.no_healthcheck, request.is_default()) {
            (false, _) => Ok(request),
            (true, true) => Ok(HealthRequest {
                test: Some(HealthTest::Off),
                ..request
            }),
            (true, false) => Err(Failure::new(
                Class::Usage,
                "--no-healthcheck and other settings of a health check contradict each other",
            )
            .hint("leave one of them out")
            .about(Setting::Health)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(change: impl FnOnce(&mut HealthArgs)) -> Result<HealthRequest, Failure> {
        let mut args = HealthArgs {
            health_cmd: None,
            health_interval: None,
            health_timeout: None,
            health_start_period: None,
            health_start_interval: None,
            health_retries: None,
            no_healthcheck: false,
        };
        change(&mut args);
        args.request()
    }

    #[test]
    fn flags_become_a_request_and_zero_leaves_it_to_the_image() {
        let asked = request(|args| {
            args.health_cmd = Some("curl x".into());
            args.health_interval = Some("1m".into());
            args.health_timeout = Some("0s".into());
            args.health_retries = Some("0".into());
        });
        let wanted = HealthRequest {
            test: Some(HealthTest::Shell("curl x".into())),
            interval_ms: Some(60_000),
            ..HealthRequest::default()
        };
        assert_eq!(asked.unwrap(), wanted);
        assert_eq!(
            request(|args| args.no_healthcheck = true).unwrap().test,
            Some(HealthTest::Off)
        );
    }

    #[test]
    fn what_makes_no_sense_is_refused_with_the_flag() {
        type Change = fn(&mut HealthArgs);
        let cases: [(&str, Change); 4] = [
            ("--health-interval", |args| args.health_interval = Some("5".into())),
            ("--health-retries", |args| args.health_retries = Some("-1".into())),
            ("empty", |args| args.health_cmd = Some(String::new())),
            ("contradict", |args| {
                args.no_healthcheck = true;
                args.health_cmd = Some("true".into());
            }),
        ];
        for (part, change) in cases {
            let failure = request(change).unwrap_err();
            assert!(failure.to_string().contains(part), "{failure}");
            assert!(failure.class == Class::Usage && failure.hint.is_some(), "{failure}");
        }
    }
}
