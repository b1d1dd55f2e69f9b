//! The domain: spec, plan, state, journal, monitor, engine.
