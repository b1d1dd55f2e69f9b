//! Waiting for what should come, and for no longer.

use std::time::Duration;

use tokio::time::timeout;

/// Whether `event` comes within `patience`.
pub(crate) async fn within<T>(event: impl Future<Output = T>, patience: Duration) -> bool {
    timeout(patience, event).await.is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn what_does_not_come_is_waited_for_no_longer_than_was_said() {
        let begun = tokio::time::Instant::now();
        assert!(!within(std::future::pending::<()>(), Duration::from_secs(15)).await);
        assert_eq!(begun.elapsed(), Duration::from_secs(15));
        assert!(within(tokio::time::sleep(Duration::from_secs(1)), Duration::from_secs(15)).await);
        assert_eq!(begun.elapsed(), Duration::from_secs(16));
    }
}
