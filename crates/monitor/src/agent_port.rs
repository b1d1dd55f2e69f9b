//! The agent of a guest with an init of its own: it opens its port when it starts, and comes and goes with the guest.

use zmachine_agent_client::clock;
use zmachine_agent_client::session::Session;
use zmachine_agent_protocol::Request as AgentRequest;
use zmachine_store::log::Source;

use super::follow::Follow;
use super::guest;
use super::inbox::Event;

impl Follow<'_> {
    /// Begins or ends the session with the guest's agent. Whatever happens there, the machine runs on.
    pub(super) async fn agent_port(&mut self, is_open: bool) {
        let log = self.monitor.log.clone();
        let note = |text: &str| log.note(Source::Monitor, text);
        self.agent.send_replace(None);
        if !is_open {
            return note("the guest's agent went");
        }
        let stream = match self.inbox.unless_ended(self.running.vm.connect_agent()).await {
            Ok(Ok(stream)) => stream,
            Ok(Err(error)) => return note(&format!("the guest's agent cannot be reached: {error}")),
            // The machine ends.
            Err(_) => return,
        };
        let session = Session::start(std::future::ready(Ok(stream)));
        // Until then nobody could tell a guest that was saved what time it is by now.
        let is_behind = self.was_saved;
        let (slot, log, events) = (self.agent.clone(), log.clone(), self.monitor.events.clone());
        tokio::spawn(async move {
            let note = |text: &str| log.note(Source::Monitor, text);
            // Only one that answers is ours: any program of the guest may open the port.
            match guest::ask(&session, &AgentRequest::Ping, guest::ANSWER_TIMEOUT).await {
                Ok(()) => {
                    note("the guest's agent is here");
                    clock::tell(is_behind.then(|| session.clone()));
                    slot.send_replace(Some(session));
                    let _ = events.send(Event::GuestUp).await;
                }
                Err(failure) => note(&format!("the guest's agent is not usable: {failure}")),
            }
        });
    }
}
