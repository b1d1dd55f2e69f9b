//! Every operation of the API.

mod parameters;

use std::collections::BTreeMap;

use zmachine_access::Role;

use self::parameters::*;
pub use self::parameters::{Kind, Parameter};
use super::files::ARCHIVE;

/// An operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Operation {
    OpenApi,
    Version,
    ListMachines,
    CreateMachine,
    PlanMachine,
    GetMachine,
    ChangeMachine,
    RemoveMachine,
    StartMachine,
    StopMachine,
    RestartMachine,
    KillMachine,
    PauseMachine,
    ResumeMachine,
    WaitMachine,
    WhyMachine,
    MachineStats,
    AllStats,
    MachineProcesses,
    ReadFiles,
    WriteFiles,
    ExportMachine,
    MachineChanges,
    CommitMachine,
    CopyMachine,
    PruneMachines,
    ListSnapshots,
    CreateSnapshot,
    GetSnapshot,
    RemoveSnapshot,
    RestoreSnapshot,
    ExportSnapshot,
    ImportSnapshot,
    Fork,
    MachineLogs,
    RunInMachine,
    EnterMachine,
    BeginInMachine,
    ListExecs,
    AttachMachine,
    MachineConsole,
    Events,
    ListImages,
    PullImage,
    GetImage,
    ImageHistory,
    TagImage,
    PushImage,
    SaveImages,
    LoadImages,
    PruneImages,
    RemoveImage,
    ListVolumes,
    CreateVolume,
    GetVolume,
    GrowVolume,
    CopyVolume,
    ListVolumeSnapshots,
    CreateVolumeSnapshot,
    RemoveVolumeSnapshot,
    RestoreVolumeSnapshot,
    PruneVolumes,
    RemoveVolume,
    ListNetworks,
    CreateNetwork,
    GetNetwork,
    ConnectNetwork,
    DisconnectNetwork,
    PruneNetworks,
    RemoveNetwork,
    ListKernels,
    InstallKernel,
    DefaultKernel,
    RemoveKernel,
    ListProjects,
    ActOnProject,
    ProjectLogs,
    Usage,
    Deploy,
    ExplainReservation,
    Doctor,
    Metrics,
}

/// The body of a request.
#[derive(Debug, Clone, Copy)]
pub enum Takes {
    /// A document of this schema.
    Document(&'static str),
    /// A stream of this type.
    Stream(&'static str),
}

/// What comes of an operation.
#[derive(Debug, Clone, Copy)]
pub enum Gives {
    /// Nothing.
    Nothing,
    /// A document of this schema.
    Document(&'static str),
    /// A stream of this type.
    Stream(&'static str),
    /// A WebSocket.
    Socket,
}

/// One operation.
#[derive(Debug, Clone, Copy)]
pub struct Route {
    /// The method.
    pub method: &'static str,
    /// The path; what stands in braces is a place.
    pub path: &'static str,
    /// Which operation.
    pub operation: Operation,
    /// What it does.
    pub about: &'static str,
    /// Who may ask for it.
    pub role: Role,
    /// Its parameters.
    pub query: &'static [Parameter],
    /// Its body.
    pub takes: Option<Takes>,
    /// The status when all went well.
    pub status: u16,
    /// What comes of it.
    pub gives: Gives,
}

const fn route(
    method: &'static str,
    path: &'static str,
    operation: Operation,
    about: &'static str,
    status: u16,
    gives: Gives,
) -> Route {
    Route {
        method,
        path,
        operation,
        about,
        // Who looks changes nothing; whatever else is meant for others than admins says so.
        role: if matches!(method.as_bytes(), b"GET") {
            Role::Viewer
        } else {
            Role::Admin
        },
        query: NONE,
        takes: None,
        status,
        gives,
    }
}

impl Route {
    const fn by(self, role: Role) -> Route {
        Route { role, ..self }
    }

    const fn with(self, query: &'static [Parameter]) -> Route {
        Route { query, ..self }
    }

    const fn taking(self, schema: &'static str) -> Route {
        Route {
            takes: Some(Takes::Document(schema)),
            ..self
        }
    }

    const fn taking_archive(self) -> Route {
        Route {
            takes: Some(Takes::Stream(ARCHIVE)),
            ..self
        }
    }

    /// What stands in the places of a path, when it is one of this operation.
    pub fn places(&self, path: &[String]) -> Option<BTreeMap<&'static str, String>> {
        let parts: Vec<&str> = self.path.split('/').filter(|part| !part.is_empty()).collect();
        if parts.len() != path.len() {
            return None;
        }
        let mut places = BTreeMap::new();
        for (part, found) in parts.into_iter().zip(path) {
            match part.strip_prefix('{').and_then(|part| part.strip_suffix('}')) {
                Some(place) => drop(places.insert(place, found.clone())),
                None if part == found => {}
                None => return None,
            }
        }
        Some(places)
    }
}

use Gives::{Document, Nothing, Socket, Stream};
use Operation as O;

/// All of them.
#[rustfmt::skip]
pub const ROUTES: &[Route] = &[
    route("GET", "/v1/openapi.json", O::OpenApi, "This description", 200, Document("OpenApi")),
    route("GET", "/v1/version", O::Version, "Versions of the server and of the API", 200, Document("Version")),
    route("GET", "/v1/machines", O::ListMachines, "List machines, oldest first", 200, Document("MachinePage")).with(LIST),
    route("POST", "/v1/machines", O::CreateMachine, "Create a machine; it is not started. With the header Idempotency-Key, a second request with the same key gives the machine of the first", 201, Document("Machine")).taking("MachineSpec"),
    route("POST", "/v1/plans", O::PlanMachine, "Tell what would be made of a spec, and create nothing", 200, Document("Plan")).taking("MachineSpec"),
    route("GET", "/v1/machines/{name}", O::GetMachine, "Everything about a machine, without its secrets; the header ETag changes with its spec", 200, Document("Machine")),
    route("PATCH", "/v1/machines/{name}", O::ChangeMachine, "Change a machine: its name, policy, labels, CPUs or memory. With the header If-Match, only while its spec is the one that the caller knows", 200, Document("Machine")).taking("Change"),
    route("DELETE", "/v1/machines/{name}", O::RemoveMachine, "Remove a machine with its disk and logs. The header If-Match is heeded", 204, Nothing)
        .with(&[parameter("force", Kind::Flag, "also one that runs, which is killed"), parameter("volumes", Kind::Flag, "with the volumes that were made for it without a name; yes when it is not given")]),
    route("POST", "/v1/machines/{name}/start", O::StartMachine, "Start a machine, and wait until its entrypoint runs", 200, Document("Machine")).by(Role::Operator),
    route("POST", "/v1/machines/{name}/stop", O::StopMachine, "Stop a machine in an orderly way, and wait until it has ended", 200, Document("Machine")).with(GRACE).by(Role::Operator),
    route("POST", "/v1/machines/{name}/restart", O::RestartMachine, "Stop a machine and start it", 200, Document("Machine")).with(GRACE).by(Role::Operator),
    route("POST", "/v1/machines/{name}/kill", O::KillMachine, "End a machine at once, or send a signal to its entrypoint", 204, Nothing).by(Role::Operator)
        .with(&[parameter("signal", Kind::Text, "the signal: SIGHUP, or a number")]),
    route("POST", "/v1/machines/{name}/pause", O::PauseMachine, "Halt the virtual CPUs of a machine", 204, Nothing).by(Role::Operator),
    route("POST", "/v1/machines/{name}/resume", O::ResumeMachine, "Let the virtual CPUs of a machine run again", 204, Nothing).by(Role::Operator),
    route("POST", "/v1/machines/{name}/wait", O::WaitMachine, "Wait until a machine has ended", 200, Document("Exit")).by(Role::Viewer),
    route("GET", "/v1/machines/{name}/why", O::WhyMachine, "Tell why a machine ended as it did, also one removed in the last seven days", 200, Document("Why")),
    route("GET", "/v1/machines/{name}/stats", O::MachineStats, "What a running machine uses", 200, Document("Sample")),
    route("GET", "/v1/machines/{name}/processes", O::MachineProcesses, "The processes in a running machine", 200, Document("Processes")),
    route("GET", "/v1/stats", O::AllStats, "What all machines use that run", 200, Document("Samples")),
    route("GET", "/v1/machines/{name}/files", O::ReadFiles, "A file or directory of a machine, as a tar archive. Of one that does not run, a machine for the moment reads a copy of the disk", 200, Stream(ARCHIVE)).with(PATH).by(Role::Operator),
    route("PUT", "/v1/machines/{name}/files", O::WriteFiles, "Put a tar archive into a machine. Into one that does not run, all of it or nothing", 204, Nothing).with(TARGET).taking_archive().by(Role::Operator),
    route("GET", "/v1/machines/{name}/export", O::ExportMachine, "The whole root of a machine as a tar archive, without what is mounted in it", 200, Stream(ARCHIVE)).by(Role::Operator),
    route("GET", "/v1/machines/{name}/changes", O::MachineChanges, "What a machine has other than its image", 200, Document("Changes")).by(Role::Operator),
    route("POST", "/v1/machines/{name}/commit", O::CommitMachine, "Make an image of a machine and what it changed", 201, Document("CommittedImage")).taking("NewImage"),
    route("POST", "/v1/machines/{name}/copy", O::CopyMachine, "Copy a machine that does not run, with its disk and the volumes that it writes to", 201, Document("Machine")).taking("NewName"),
    route("POST", "/v1/machines/prune", O::PruneMachines, "Remove the machines that do not run", 200, Document("Pruned")),
    route("GET", "/v1/snapshots", O::ListSnapshots, "List snapshots", 200, Document("Snapshots")),
    route("POST", "/v1/snapshots", O::CreateSnapshot, "Save a machine as it is, while it runs, or its disks alone. The name is MACHINE or MACHINE@TAG", 201, Document("Snapshot")).taking("NewMachineSnapshot"),
    route("GET", "/v1/snapshots/{name}", O::GetSnapshot, "Show a snapshot, by MACHINE@TAG", 200, Document("Snapshot")),
    route("DELETE", "/v1/snapshots/{name}", O::RemoveSnapshot, "Remove a snapshot; machines that were made from it go on", 204, Nothing),
    route("POST", "/v1/snapshots/{name}/restore", O::RestoreSnapshot, "Let a machine that does not run go on from a snapshot of it; from its newest, when the name has no tag", 200, Document("Machine")),
    route("GET", "/v1/snapshots/{name}/archive", O::ExportSnapshot, "A snapshot as a tar archive, without its image. The guest's memory is in it, with its secrets", 200, Stream(ARCHIVE)).by(Role::Admin),
    route("POST", "/v1/snapshot-archive", O::ImportSnapshot, "Take a snapshot from an archive", 201, Document("Snapshot")).with(&[parameter("name", Kind::Text, "MACHINE[@TAG]; what the archive says when it is not given")]).taking_archive(),
    route("POST", "/v1/forks", O::Fork, "Make machines that go on from where another one is, or was", 201, Document("Forked")).taking("NewFork"),
    route("GET", "/v1/machines/{name}/logs", O::MachineLogs, "What a machine wrote, one JSON object a line", 200, Stream("application/x-ndjson")).with(SPAN),
    route("POST", "/v1/machines/{name}/exec", O::RunInMachine, "Run a command in a running machine to its end, and tell what it wrote: up to 1 MiB of each stream", 200, Document("Output")).taking("Command").by(Role::Operator),
    route("GET", "/v1/machines/{name}/exec", O::EnterMachine, "Run a command in a running machine, over a WebSocket. With the connection its terminal hangs up, or its input and output end", 101, Socket).with(COMMAND).by(Role::Operator),
    route("POST", "/v1/machines/{name}/execs", O::BeginInMachine, "Start a command in a running machine that runs on by itself; what it writes is dropped", 201, Document("Exec")).taking("Command").by(Role::Operator),
    route("GET", "/v1/machines/{name}/execs", O::ListExecs, "The commands of a machine that have ids: those that run, and those that ended lately", 200, Document("Execs")),
    route("GET", "/v1/machines/{name}/attach", O::AttachMachine, "Follow the entrypoint of a machine from now on, over a WebSocket; that of one that does not run, from its next start on", 101, Socket).with(STDIN).by(Role::Operator),
    route("GET", "/v1/machines/{name}/console", O::MachineConsole, "The serial console of a running machine, over a WebSocket", 101, Socket).with(STDIN).by(Role::Operator),
    route("GET", "/v1/events", O::Events, "What happens to all machines, as server-sent events", 200, Stream("text/event-stream"))
        .with(&[parameter("since", Kind::Text, "a time of RFC 3339, or seconds since 1970; now when it is not given"), parameter("follow", Kind::Flag, "go on with what comes; yes when it is not given")]),
    route("GET", "/v1/images", O::ListImages, "List images", 200, Document("Images")),
    route("POST", "/v1/images", O::PullImage, "Bring an image here, and give it a name", 201, Document("PulledImage")).taking("ImagePull"),
    route("DELETE", "/v1/images/{name}", O::RemoveImage, "Take a name away, and the image with its last one. The slashes of the name are written %2F", 200, Document("RemovedImage")),
    route("GET", "/v1/images/{name}", O::GetImage, "Show an image, as docker does", 200, Document("Image")),
    route("GET", "/v1/images/{name}/history", O::ImageHistory, "The steps that made an image, the newest first", 200, Document("History")),
    route("POST", "/v1/images/{name}/tag", O::TagImage, "Give an image another name", 204, Nothing).taking("NewName"),
    route("POST", "/v1/images/{name}/push", O::PushImage, "Bring an image to a registry, with the credentials of the server's user", 200, Document("PulledImage")).taking("Push"),
    route("POST", "/v1/images/prune", O::PruneImages, "Remove images without a name that no machine uses, and blocks that no image has", 200, Document("PrunedImages")),
    route("GET", "/v1/image-archive", O::SaveImages, "Images as an archive", 200, Stream(ARCHIVE)).with(SAVED).by(Role::Operator),
    route("POST", "/v1/image-archive", O::LoadImages, "Take the images of an archive, as docker or podman writes it", 201, Document("LoadedImages")).taking_archive(),
    route("GET", "/v1/volumes", O::ListVolumes, "List volumes", 200, Document("Volumes")),
    route("POST", "/v1/volumes", O::CreateVolume, "Create a volume", 201, Document("Volume")).taking("NewVolume"),
    route("GET", "/v1/volumes/{name}", O::GetVolume, "Show a volume", 200, Document("Volume")),
    route("DELETE", "/v1/volumes/{name}", O::RemoveVolume, "Remove a volume with its data", 204, Nothing),
    route("POST", "/v1/volumes/{name}/grow", O::GrowVolume, "Make a volume larger, with the file system on it when a machine that runs uses it", 200, Document("Volume")).taking("NewSize"),
    route("POST", "/v1/volumes/{name}/copy", O::CopyVolume, "Copy a volume, or a snapshot of one (VOLUME@TAG), to a new volume; a guest that writes to it waits until it is copied", 201, Document("Volume")).taking("NewName"),
    route("GET", "/v1/volume-snapshots", O::ListVolumeSnapshots, "List snapshots of volumes", 200, Document("VolumeSnapshots")),
    route("POST", "/v1/volume-snapshots", O::CreateVolumeSnapshot, "Save a volume as it is; a guest that writes to it waits until it is copied. The name is VOLUME or VOLUME@TAG", 201, Document("VolumeSnapshot")).taking("NewSnapshot"),
    route("DELETE", "/v1/volume-snapshots/{name}", O::RemoveVolumeSnapshot, "Remove a snapshot of a volume, by VOLUME@TAG", 204, Nothing),
    route("POST", "/v1/volume-snapshots/{name}/restore", O::RestoreVolumeSnapshot, "Make a volume that no machine uses what it was, by VOLUME@TAG", 200, Document("Volume")),
    route("POST", "/v1/volumes/prune", O::PruneVolumes, "Remove the volumes that no machine uses, with all their data", 200, Document("Pruned")).with(&[parameter("all", Kind::Flag, "those that have a name, too")]),
    route("GET", "/v1/networks", O::ListNetworks, "List networks", 200, Document("Networks")),
    route("POST", "/v1/networks", O::CreateNetwork, "Create a network", 201, Document("Network")).taking("NewNetwork"),
    route("GET", "/v1/networks/{name}", O::GetNetwork, "Show a network", 200, Document("Network")),
    route("DELETE", "/v1/networks/{name}", O::RemoveNetwork, "Remove a network that no machine is in", 204, Nothing),
    route("POST", "/v1/networks/{name}/connect", O::ConnectNetwork, "Have a machine join a network, at once when it runs", 204, Nothing).taking("Joining"),
    route("POST", "/v1/networks/{name}/disconnect", O::DisconnectNetwork, "Have a machine leave a network, at once when it runs", 204, Nothing).taking("Leaving"),
    route("POST", "/v1/networks/prune", O::PruneNetworks, "Remove the networks that no machine is in, but the default one", 200, Document("Pruned")),
    route("GET", "/v1/kernels", O::ListKernels, "List guest kernels", 200, Document("Kernels")),
    route("POST", "/v1/kernels", O::InstallKernel, "Install the distribution's kernel for guests", 201, Document("Kernel")).taking("NewKernel"),
    route("POST", "/v1/kernels/{name}/default", O::DefaultKernel, "Choose the kernel that machines get by default", 204, Nothing),
    route("DELETE", "/v1/kernels/{name}", O::RemoveKernel, "Remove a kernel", 204, Nothing).with(FORCE),
    route("GET", "/v1/projects", O::ListProjects, "List compose projects", 200, Document("Projects")),
    route("POST", "/v1/projects/{name}/actions", O::ActOnProject, "Make, change or remove the machines of a compose project, as 'zmachine compose' does. What it tells comes as one JSON object a line, {\"stream\", \"text\"}; the last one is {\"exit\": CODE}", 200, Stream("application/x-ndjson")).taking("ProjectAction"),
    route("GET", "/v1/projects/{name}/logs", O::ProjectLogs, "What the machines of a project wrote, as text", 200, Stream("text/plain")).with(PROJECT_LOGS),
    route("GET", "/v1/usage", O::Usage, "What images, blocks, machines and volumes take on this host", 200, Document("Usage")),
    route("POST", "/v1/reservations", O::Deploy, "Create and start the machine of a Zero-OS reservation, as 'zmachine deploy' does", 201, Document("Deployed")).taking("Reservation").with(NAME),
    route("POST", "/v1/reservations/explain", O::ExplainReservation, "Tell what each field of a reservation means here, and change nothing", 200, Document("Explanation")).taking("Reservation").by(Role::Viewer),
    route("GET", "/v1/doctor", O::Doctor, "Check what this host offers to machines", 200, Document("Checks")),
    route("GET", "/v1/metrics", O::Metrics, "Figures of all machines, for Prometheus", 200, Stream("text/plain; version=0.0.4")),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_only_looks_gets_no_contents() {
        let archives = ROUTES
            .iter()
            .filter(|route| matches!(route.gives, Gives::Stream(ARCHIVE)));
        let roles: Vec<_> = archives.map(|route| (route.operation, route.role)).collect();
        assert!(roles.iter().all(|(_, role)| *role > Role::Viewer), "{roles:?}");
        // A machine's memory has what nobody wrote to a disk.
        assert!(roles.contains(&(Operation::ExportSnapshot, Role::Admin)));
    }

    #[test]
    fn every_operation_has_one_path_and_every_path_its_places() {
        for (index, route) in ROUTES.iter().enumerate() {
            let is_again = |other: &&Route| {
                other.operation == route.operation || (other.method, other.path) == (route.method, route.path)
            };
            assert!(!ROUTES[..index].iter().any(|other| is_again(&other)), "{}", route.path);
        }
        let path: Vec<String> = ["v1", "machines", "web", "start"].map(str::to_owned).into();
        let found: Vec<_> = ROUTES
            .iter()
            .filter_map(|route| Some((route.operation, route.places(&path)?)))
            .collect();
        assert_eq!(
            found,
            [(Operation::StartMachine, BTreeMap::from([("name", "web".to_owned())]))]
        );
    }
}
