//! The template of a machine: its guest, set up, before its entrypoint is started. Later machines like it begin from there.

use jiff::Timestamp;
use zmachine_agent_client::session::Session;
use zmachine_plan::{ContainerPlan, Plan};
use zmachine_spec::Failure;
use zmachine_store::log::Source;
use zmachine_store::snapshot::{DISK, SNAPSHOT_VERSION, Snapshot};
use zmachine_store::template::{TemplateDraft, Templates};

use super::context::Monitor;
use super::running::Running;
use super::saving::{Saving, freeze, save_vm, thaw};

impl Monitor {
    /// Begins a template, if this start is to make one.
    pub(super) fn begin_template(&mut self, plan: &ContainerPlan) -> Option<(String, TemplateDraft)> {
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
            let snapshot = Snapshot {
                version: SNAPSHOT_VERSION,
                machine: self.machine.spec.name.clone(),
                machine_id: self.machine.id.clone(),
                tag: key,
                automatic: true,
                created_at: Timestamp::now(),
                spec: self.machine.spec.clone(),
                plan: Plan::Container(Box::new(plan.clone())),
                guest_kernel: self.machine.state.guest_kernel.clone(),
                saved: Some(saved),
                disks: None,
            };
            Templates::of(&self.home).publish(draft, &snapshot)
        });
        if let Err(failure) = published {
            self.log
                .note(Source::Monitor, &format!("no template is made: {failure}"));
        }
        Ok(())
    }
}
