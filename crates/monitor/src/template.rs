//! The template of a machine: its guest, set up, before its entrypoint is started, or when that is ready. Later machines like it begin from
//! there.

use jiff::Timestamp;
use tokio::sync::oneshot;
use zmachine_agent_client::session::Session;
use zmachine_agent_protocol::Request as AgentRequest;
use zmachine_plan::{ContainerPlan, Plan};
use zmachine_spec::Failure;
use zmachine_spec::control::Reply;
use zmachine_spec::saved::Saved;
use zmachine_store::log::Source;
use zmachine_store::snapshot::{DISK, SNAPSHOT_VERSION, Snapshot};
use zmachine_store::template::{TemplateDraft, Templates};

use super::context::Monitor;
use super::follow::Follow;
use super::guest::ANSWER_TIMEOUT;
use super::inbox::Event;
use super::launch::{in_thread, joined};
use super::running::Running;
use super::saving::{Saving, freeze, save_vm, thaw};

impl Monitor {
    /// Begins a template, if this start is to make one.
    pub(super) fn begin_template(&mut self, plan: &ContainerPlan) -> Option<(String, TemplateDraft)> {
        if self.machine.spec.warm_ready {
            return None;
        }
        let key = self.template.take()?;
        // It would have the secrets of this machine in it.
        if !self.machine.spec.secrets.is_empty() || !plan.boot.first_start {
            return None;
        }
        match Templates::of(&self.home).begin(&key) {
            Ok(draft) => draft.map(|draft| (key, draft)),
            Err(failure) => {
                self.log
                    .note(Source::Monitor, &format!("no template is made: {failure}"));
                None
            }
        }
    }

    /// Makes it. The machine goes on whether there is one in the end or not.
    ///
    /// # Errors
    /// When the guest does not go on.
    pub(super) async fn make_template(
        &self,
        (key, draft): (String, TemplateDraft),
        plan: &ContainerPlan,
        running: &mut Running,
        session: &Session,
    ) -> Result<(), Failure> {
        let clock = match freeze(session).await {
            Ok(clock) => clock,
            Err(failure) => {
                self.log
                    .note(Source::Monitor, &format!("no template is made: {failure}"));
                return Ok(());
            }
        };
        let saving = Saving {
            own: vec![self.machine.dir.join(DISK)],
            // One with volumes makes no template.
            volumes: Vec::new(),
            accel: plan.vm.accel,
            memory_bytes: plan.vm.memory_bytes,
            has_entrypoint: false,
            clock,
        };
        let saved = save_vm(&mut *running.vm, &saving, &draft.folder).await;
        thaw(session).await?;
        let published = saved.and_then(|saved| {
            let plan = Plan::Container(Box::new(plan.clone()));
            let snapshot = self.description(key, plan, Some(saved));
            Templates::of(&self.home).publish(draft, &snapshot)
        });
        if let Err(failure) = published {
            self.log
                .note(Source::Monitor, &format!("no template is made: {failure}"));
        }
        Ok(())
    }
}

impl Monitor {
    fn description(&self, key: String, plan: Plan, saved: Option<Saved>) -> Snapshot {
        Snapshot {
            version: SNAPSHOT_VERSION,
            machine: self.machine.spec.name.clone(),
            machine_id: self.machine.id.clone(),
            tag: key,
            automatic: true,
            created_at: Timestamp::now(),
            spec: self.machine.spec.clone(),
            plan,
            guest_kernel: self.machine.state.guest_kernel.clone(),
            saved,
            disks: None,
        }
    }

    /// Whether this start makes a template when its entrypoint is ready.
    pub(super) fn makes_template_of_ready(&self, plan: &ContainerPlan) -> bool {
        let spec = &self.machine.spec;
        self.template.is_some()
            && spec.warm_ready
            && spec.secrets.is_empty()
            && plan.boot.first_start
            && !plan.is_idle()
    }

    /// Has the loop told when the entrypoint, which is not started yet, says that it is ready.
    pub(super) async fn listen_for_ready(&mut self, session: &Session) {
        self.is_entry_ready = false;
        let listening = async {
            let mut stream = session.open(&AgentRequest::AwaitReady).await?;
            stream.reader.reply().await.map(|_| stream)
        };
        let failure = match tokio::time::timeout(ANSWER_TIMEOUT, listening).await {
            Ok(Ok(mut stream)) => {
                let events = self.events.clone();
                tokio::spawn(async move {
                    if stream.reader.reply().await.is_ok() {
                        let _ = events.send(Event::EntryReady).await;
                    }
                });
                return;
            }
            Ok(Err(error)) => error.to_string(),
            Err(_) => "it does not answer".to_owned(),
        };
        let text = format!("the agent does not listen for the entrypoint: {failure}");
        self.log.note(Source::Monitor, &text);
    }
}

impl Follow<'_> {
    /// The entrypoint is ready: makes the template, if this run is to make one. Nobody waits for it.
    pub(super) fn template_of_ready(&mut self) {
        let Plan::Container(plan) = &*self.plan else { return };
        if !self.monitor.makes_template_of_ready(plan) || self.ending.deadline.is_some() {
            return;
        }
        let Some(key) = self.monitor.template.take() else {
            return;
        };
        let log = self.monitor.log.clone();
        let none = move |why: &dyn std::fmt::Display| log.note(Source::Monitor, &format!("no template is made: {why}"));
        if self.monitor.activity.is_touched() {
            return none(&"a client has done something in the guest before it was ready");
        }
        let templates = Templates::of(&self.monitor.home);
        let draft = match templates.begin(&key) {
            Ok(Some(draft)) => draft,
            Ok(None) => return,
            Err(failure) => return none(&failure),
        };
        let mut snapshot = self.monitor.description(key, self.plan.clone(), None);
        let (client, saved) = oneshot::channel();
        self.save(draft.folder.clone(), client);
        tokio::spawn(async move {
            snapshot.saved = match saved.await {
                Ok(Reply::Saved(saved)) => Some(*saved),
                Ok(Reply::Failed(failure)) => return none(&failure),
                // The machine has ended meanwhile.
                _ => return,
            };
            let published = joined(in_thread(move || templates.publish(draft, &snapshot)));
            if let Err(failure) = published.await {
                none(&failure);
            }
        });
    }
}
