#!/usr/bin/python3
"""A small client of the container runtime interface (CRI v1): one call, its request and answer as JSON.

usage: cri.py SOCKET METHOD JSON        METHOD as in RuntimeService/RunPodSandbox, or ImageService/PullImage

Requests and answers are written with the names of the fields below; what an answer has beyond them is left out.
"""
import json
import sys

import grpc

# Field numbers of k8s.io/cri-api/pkg/apis/runtime/v1/api.proto. A type is a scalar's name, another message's, "map" (of
# strings), or one of these in a list for a repeated field.
T = {
    "Meta": {"name": (1, "string"), "uid": (2, "string"), "namespace": (3, "string"), "attempt": (4, "int")},
    "Namespaces": {"network": (1, "int"), "pid": (2, "int"), "ipc": (3, "int")},
    "Int64": {"value": (1, "int")},
    "SandboxSecurity": {"namespace_options": (1, "Namespaces"), "privileged": (6, "int")},
    "Resources": {"cpu_period": (1, "int"), "cpu_quota": (2, "int"), "cpu_shares": (3, "int"),
                  "memory_limit_in_bytes": (4, "int"), "oom_score_adj": (5, "int")},
    "SandboxLinux": {"cgroup_parent": (1, "string"), "security_context": (2, "SandboxSecurity"), "sysctls": (3, "map"),
                     "overhead": (4, "Resources"), "resources": (5, "Resources")},
    "Dns": {"servers": (1, ["string"]), "searches": (2, ["string"]), "options": (3, ["string"])},
    "Port": {"protocol": (1, "int"), "container_port": (2, "int"), "host_port": (3, "int"), "host_ip": (4, "string")},
    "Sandbox": {"metadata": (1, "Meta"), "hostname": (2, "string"), "log_directory": (3, "string"), "dns_config": (4, "Dns"),
                "port_mappings": (5, ["Port"]), "labels": (6, "map"), "annotations": (7, "map"), "linux": (8, "SandboxLinux")},
    "RunPodSandboxRequest": {"config": (1, "Sandbox"), "runtime_handler": (2, "string")},
    "RunPodSandboxResponse": {"pod_sandbox_id": (1, "string")},
    "PodSandboxRequest": {"pod_sandbox_id": (1, "string"), "verbose": (2, "int")},
    "Ip": {"ip": (1, "string")},
    "SandboxStatus": {"id": (1, "string"), "metadata": (2, "Meta"), "state": (3, "int"), "network": (5, "Ip")},
    "PodSandboxStatusResponse": {"status": (1, "SandboxStatus"), "info": (2, "map")},
    "Image": {"image": (1, "string")},
    "KeyValue": {"key": (1, "string"), "value": (2, "string")},
    "Mount": {"container_path": (1, "string"), "host_path": (2, "string"), "readonly": (3, "int"), "propagation": (5, "int")},
    "Device": {"container_path": (1, "string"), "host_path": (2, "string"), "permissions": (3, "string")},
    "Capability": {"add": (1, ["string"]), "drop": (2, ["string"])},
    "Security": {"capabilities": (1, "Capability"), "privileged": (2, "int"), "namespace_options": (3, "Namespaces"),
                 "run_as_user": (5, "Int64"), "run_as_username": (6, "string"), "readonly_rootfs": (7, "int"),
                 "supplemental_groups": (8, ["int"]), "no_new_privs": (11, "int"), "run_as_group": (12, "Int64"),
                 "masked_paths": (13, ["string"]), "readonly_paths": (14, ["string"]), "seccomp": (15, "Profile")},
    "Profile": {"profile_type": (1, "int"), "localhost_ref": (2, "string")},
    "ContainerLinux": {"resources": (1, "Resources"), "security_context": (2, "Security")},
    "Container": {"metadata": (1, "Meta"), "image": (2, "Image"), "command": (3, ["string"]), "args": (4, ["string"]),
                  "working_dir": (5, "string"), "envs": (6, ["KeyValue"]), "mounts": (7, ["Mount"]), "devices": (8, ["Device"]), "labels": (9, "map"),
                  "annotations": (10, "map"), "log_path": (11, "string"), "stdin": (12, "int"), "stdin_once": (13, "int"),
                  "tty": (14, "int"), "linux": (15, "ContainerLinux")},
    "CreateContainerRequest": {"pod_sandbox_id": (1, "string"), "config": (2, "Container"), "sandbox_config": (3, "Sandbox")},
    "CreateContainerResponse": {"container_id": (1, "string")},
    "ContainerRequest": {"container_id": (1, "string"), "timeout": (2, "int")},
    "UpdateContainerResourcesRequest": {"container_id": (1, "string"), "linux": (2, "Resources")},
    "ExecSyncRequest": {"container_id": (1, "string"), "cmd": (2, ["string"]), "timeout": (3, "int")},
    "ExecSyncResponse": {"stdout": (1, "string"), "stderr": (2, "string"), "exit_code": (3, "int")},
    "ContainerStatus": {"id": (1, "string"), "state": (3, "int"), "started_at": (5, "int"), "finished_at": (6, "int"),
                        "exit_code": (7, "int"), "reason": (10, "string"), "message": (11, "string")},
    "ContainerStatusResponse": {"status": (1, "ContainerStatus")},
    "Cpu": {"usage_core_nano_seconds": (2, "Int64")},
    "Memory": {"working_set_bytes": (2, "Int64")},
    "Stats": {"cpu": (2, "Cpu"), "memory": (3, "Memory")},
    "ContainerStatsResponse": {"stats": (1, "Stats")},
    "Empty": {},
    "SandboxItem": {"id": (1, "string"), "state": (3, "int")},
    "ListPodSandboxResponse": {"items": (1, ["SandboxItem"])},
    "ContainerItem": {"id": (1, "string"), "state": (6, "int")},
    "ListContainersResponse": {"containers": (1, ["ContainerItem"])},
    "ImageRequest": {"image": (1, "Image")},
    "PullImageResponse": {"image_ref": (1, "string")},
}
CALLS = {
    "RunPodSandbox": ("RunPodSandboxRequest", "RunPodSandboxResponse"),
    "StopPodSandbox": ("PodSandboxRequest", "Empty"),
    "RemovePodSandbox": ("PodSandboxRequest", "Empty"),
    "PodSandboxStatus": ("PodSandboxRequest", "PodSandboxStatusResponse"),
    "ListPodSandbox": ("Empty", "ListPodSandboxResponse"),
    "CreateContainer": ("CreateContainerRequest", "CreateContainerResponse"),
    "StartContainer": ("ContainerRequest", "Empty"),
    "StopContainer": ("ContainerRequest", "Empty"),
    "RemoveContainer": ("ContainerRequest", "Empty"),
    "ListContainers": ("Empty", "ListContainersResponse"),
    "ContainerStatus": ("ContainerRequest", "ContainerStatusResponse"),
    "ContainerStats": ("ContainerRequest", "ContainerStatsResponse"),
    "UpdateContainerResources": ("UpdateContainerResourcesRequest", "Empty"),
    "ExecSync": ("ExecSyncRequest", "ExecSyncResponse"),
    "PullImage": ("ImageRequest", "PullImageResponse"),
    "RemoveImage": ("ImageRequest", "Empty"),
}


def varint(number):
    number &= (1 << 64) - 1
    out = bytearray()
    while number > 127:
        out.append(number & 127 | 128)
        number >>= 7
    out.append(number)
    return bytes(out)


def encode(kind, values):
    out = b""
    for name, value in values.items():
        number, of = T[kind][name]
        if of == "map":
            items = [{"key": key, "value": text} for key, text in value.items()]
            of = "KeyValue"
        else:
            items, of = (value, of[0]) if isinstance(of, list) else ([value], of)
        for item in items:
            if of == "int":
                out += varint(number << 3) + varint(int(item))
                continue
            data = item.encode() if of == "string" else encode(of, item)
            out += varint(number << 3 | 2) + varint(len(data)) + data
    return out


def read_varint(data, at):
    number = shift = 0
    while True:
        number |= (data[at] & 127) << shift
        shift += 7
        at += 1
        if data[at - 1] < 128:
            return number, at


def decode(kind, data):
    names = {number: (name, of) for name, (number, of) in T[kind].items()}
    values = {name: [] for name, of in names.values() if isinstance(of, list)}
    at = 0
    while at < len(data):
        tag, at = read_varint(data, at)
        if tag & 7 == 0:
            value, at = read_varint(data, at)
            value = value - (1 << 64) if value >> 63 else value
        elif tag & 7 == 2:
            length, at = read_varint(data, at)
            value, at = data[at:at + length], at + length
        else:
            at += 8 if tag & 7 == 1 else 4
            continue
        if tag >> 3 not in names:
            continue
        name, of = names[tag >> 3]
        plain = of[0] if isinstance(of, list) else of
        if plain == "string":
            value = value.decode(errors="replace")
        elif plain == "map":
            pair = decode("KeyValue", value)
            values.setdefault(name, {})[pair.get("key", "")] = pair.get("value", "")
            continue
        elif plain != "int":
            value = decode(plain, value)
        if isinstance(of, list):
            values[name].append(value)
        else:
            values[name] = value
    return values


def main():
    socket, method, text = sys.argv[1:]
    request, response = CALLS[method]
    with grpc.insecure_channel(f"unix://{socket}") as channel:
        service = "ImageService" if method.endswith("Image") else "RuntimeService"
        call = channel.unary_unary(f"/runtime.v1.{service}/{method}")
        try:
            answer = call(encode(request, json.loads(text)), timeout=240, wait_for_ready=True)
        except grpc.RpcError as error:
            print(f"{error.code().name}: {error.details()}", file=sys.stderr)
            return 1
    print(json.dumps(decode(response, answer)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
