//! Real clients against a real server and real guests: the docker command of Debian, Compose and docker-py of PyPI.
//!
//! A boot takes seconds, so one container serves many checks.

mod command;
mod compose;
mod images;
mod python;
mod remote;
mod rest;
mod support;
mod testcontainers;
