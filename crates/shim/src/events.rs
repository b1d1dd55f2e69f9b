//! What containerd is told of: a queue that survives a containerd that is away for a while.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use containerd_shim_protos::protobuf::well_known_types::any::Any;
use containerd_shim_protos::protobuf::well_known_types::timestamp::Timestamp;
use containerd_shim_protos::protobuf::{MessageField, MessageFull};
use containerd_shim_protos::shim::event::Envelope;
use containerd_shim_protos::shim::events::ForwardRequest;
use containerd_shim_protos::shim_async::{Client, EventsClient};
use containerd_shim_protos::ttrpc::context;
use tokio::sync::mpsc;

use crate::address;
use crate::log::Log;

/// Events that wait for a containerd that does not answer. Older ones stay: an exit that is not told leaves a pod running for ever.
const QUEUE: usize = 4096;

/// How long one delivery may take.
const PATIENCE: Duration = Duration::from_secs(5);

/// Time between two attempts.
const PAUSE: Duration = Duration::from_millis(500);

/// A handle to the queue.
#[derive(Debug, Clone)]
pub(crate) struct Events {
    queue: mpsc::Sender<Envelope>,
    namespace: String,
}

impl Events {
    /// A queue to the containerd at `address`, and the task that empties it. Call it in a runtime.
    pub(crate) fn open(address: String, namespace: String, log: Log) -> Events {
        let (queue, waiting) = mpsc::channel(QUEUE);
        tokio::spawn(deliver(address, waiting, log));
        Events { queue, namespace }
    }

    /// Adds an event.
    pub(crate) fn send<T: MessageFull>(&self, topic: &str, event: &T) {
        let envelope = Envelope {
            timestamp: MessageField::some(timestamp(SystemTime::now())),
            namespace: self.namespace.clone(),
            topic: topic.to_owned(),
            event: MessageField::some(Any {
                type_url: T::descriptor().full_name().to_owned(),
                value: event.write_to_bytes().unwrap_or_default(),
                ..Any::default()
            }),
            ..Envelope::default()
        };
        // Full: containerd has been away for thousands of events, and asks for states when it is back.
        let _ = self.queue.try_send(envelope);
    }

    /// Waits until all of it is delivered, for so long at most.
    pub(crate) async fn drained(&self, patience: Duration) {
        let is_empty = async {
            while self.queue.capacity() < QUEUE {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            // The last one is on its way.
            tokio::time::sleep(Duration::from_millis(50)).await;
        };
        let _ = tokio::time::timeout(patience, is_empty).await;
    }
}

async fn deliver(address: String, mut waiting: mpsc::Receiver<Envelope>, log: Log) {
    let mut client: Option<EventsClient> = None;
    let mut is_told = false;
    while let Some(envelope) = waiting.recv().await {
        loop {
            if client.is_none() {
                client = connect(&address).await;
            }
            if let Some(connected) = &client {
                let request = ForwardRequest {
                    envelope: MessageField::some(envelope.clone()),
                    ..ForwardRequest::default()
                };
                let forwarded = connected.forward(context::with_duration(PATIENCE), &request);
                match tokio::time::timeout(PATIENCE, forwarded).await {
                    Ok(Ok(_)) => break,
                    Ok(Err(error)) if !is_told => log.line(&format!("containerd does not take events: {error}")),
                    _ => {}
                }
                is_told = true;
            }
            client = None;
            tokio::time::sleep(PAUSE).await;
        }
        is_told = false;
    }
}

async fn connect(address: &str) -> Option<EventsClient> {
    let socket = address::to_text(&address::path(address));
    let client = Client::connect(&socket).await.ok()?;
    Some(EventsClient::new(client))
}

/// A point in time on the wire.
pub(crate) fn timestamp(at: SystemTime) -> Timestamp {
    let since = at.duration_since(UNIX_EPOCH).unwrap_or_default();
    Timestamp {
        seconds: since.as_secs().cast_signed(),
        nanos: since.subsec_nanos().cast_signed(),
        ..Timestamp::default()
    }
}
