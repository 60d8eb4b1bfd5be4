"""Pods as the kubelet makes them: containerd's CRI service (runtime.v1), by gRPC over its socket.

The messages are our own: the fields that tests use, with CRI's numbers (its api.proto), built when this module
is imported and under a name of ours. Only method paths carry CRI's name. Maps are written as what they are on
the wire, lists of pairs.
"""

from __future__ import annotations

import dataclasses
import json
from typing import TYPE_CHECKING, Any, Self

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

from ctrport.containerd.rpc import grpc  # from there, as its environment is set before the import
from lab import Netns, until

if TYPE_CHECKING:
    from collections.abc import Mapping

    from containerd_instance import Containerd

NAMESPACE = "k8s.io"
PACKAGE = "ctrport.tests.cri"
NODE = 2  # NamespaceMode: the host's
READY = 0  # PodSandboxState SANDBOX_READY

# Message -> "number type name"; "+" is a repeated field.
MESSAGES = {
    "Pair": ("1 string key", "2 string value"),
    "PodMetadata": ("1 string name", "2 string uid", "3 string namespace", "4 uint32 attempt"),
    "PortMapping": ("1 int32 protocol", "2 int32 container_port", "3 int32 host_port", "4 string host_ip"),
    "NamespaceOption": ("1 int32 network", "2 int32 pid"),
    "SecurityContext": ("1 NamespaceOption namespace_options",),
    "LinuxPod": ("1 string cgroup_parent", "2 SecurityContext security_context"),
    "PodConfig": (
        *("1 PodMetadata metadata", "2 string hostname", "3 string log_directory", "5 +PortMapping port_mappings"),
        *("6 +Pair labels", "7 +Pair annotations", "8 LinuxPod linux"),
    ),
    "RunPod": ("1 PodConfig config",),
    "PodId": ("1 string pod_sandbox_id",),
    "Pod": ("1 string id", "2 PodMetadata metadata", "3 int32 state"),
    "Pods": ("1 +Pod items",),
    "PodIp": ("1 string ip",),
    "PodNetwork": ("1 string ip", "2 +PodIp additional_ips"),
    "PodStatus": ("1 string id", "2 PodMetadata metadata", "3 int32 state", "5 PodNetwork network"),
    "PodStatusAnswer": ("1 PodStatus status",),
    "Image": ("1 string image",),
    "ImageStatus": ("1 Image image",),
    "ImageFound": ("1 string id",),
    "ImageStatusAnswer": ("1 ImageFound image",),
    "ContainerMetadata": ("1 string name", "2 uint32 attempt"),
    "ContainerConfig": (
        *("1 ContainerMetadata metadata", "2 Image image", "3 +string command", "4 +string args"),
        *("6 +Pair envs", "7 +Mount mounts", "9 +Pair labels", "10 +Pair annotations"),
        *("11 string log_path", "15 LinuxContainer linux"),
    ),
    "Mount": ("1 string container_path", "2 string host_path", "3 bool readonly"),
    "LinuxContainer": ("2 Privileges security_context",),
    "Privileges": (
        *("1 Capabilities capabilities", "2 bool privileged", "3 NamespaceOption namespace_options"),
        *("5 Number run_as_user", "7 bool readonly_rootfs", "11 bool no_new_privs", "15 SecurityProfile seccomp"),
    ),
    "Capabilities": ("1 +string add_capabilities", "2 +string drop_capabilities"),
    "Number": ("1 int64 value",),
    "SecurityProfile": ("1 int32 profile_type",),
    "CreateContainer": ("1 string pod_sandbox_id", "2 ContainerConfig config", "3 PodConfig sandbox_config"),
    "ContainerId": ("1 string container_id",),
    "StopContainer": ("1 string container_id", "2 int64 timeout"),
    "Exec": ("1 string container_id", "2 +string cmd", "3 int64 timeout"),
    "ExecAnswer": ("1 bytes stdout", "2 bytes stderr", "3 int32 exit_code"),
    "StatusQuery": ("1 bool verbose",),
    "StatusAnswer": ("2 +Pair info",),
    "Nothing": (),
}
METHODS = {
    "RunPodSandbox": ("RuntimeService", "RunPod", "PodId"),
    "StopPodSandbox": ("RuntimeService", "PodId", "Nothing"),
    "RemovePodSandbox": ("RuntimeService", "PodId", "Nothing"),
    "PodSandboxStatus": ("RuntimeService", "PodId", "PodStatusAnswer"),
    "ListPodSandbox": ("RuntimeService", "Nothing", "Pods"),
    "CreateContainer": ("RuntimeService", "CreateContainer", "ContainerId"),
    "StartContainer": ("RuntimeService", "ContainerId", "Nothing"),
    "StopContainer": ("RuntimeService", "StopContainer", "Nothing"),
    "RemoveContainer": ("RuntimeService", "ContainerId", "Nothing"),
    "ExecSync": ("RuntimeService", "Exec", "ExecAnswer"),
    "ImageStatus": ("ImageService", "ImageStatus", "ImageStatusAnswer"),
    "Status": ("RuntimeService", "StatusQuery", "StatusAnswer"),
}


def _build() -> dict[str, Any]:
    """Give the classes of MESSAGES by name."""
    scalars = {
        each: getattr(descriptor_pb2.FieldDescriptorProto, f"TYPE_{each.upper()}")
        for each in ("string", "bytes", "int32", "int64", "uint32", "bool")
    }
    file = descriptor_pb2.FileDescriptorProto(name="ctrport/tests/cri.proto", package=PACKAGE, syntax="proto3")
    for name, fields in MESSAGES.items():
        message = file.message_type.add(name=name)
        for text in fields:
            number, kind, field = text.split()
            label = 3 if kind.startswith("+") else 1  # LABEL_REPEATED, LABEL_OPTIONAL
            kind = kind.removeprefix("+")
            made = message.field.add(name=field, number=int(number), label=label)
            if kind in scalars:
                made.type = scalars[kind]
            else:
                made.type, made.type_name = 11, f".{PACKAGE}.{kind}"  # TYPE_MESSAGE
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return {
        name: message_factory.GetMessageClass(pool.FindMessageTypeByName(f"{PACKAGE}.{name}")) for name in MESSAGES
    }


TYPES = _build()


@dataclasses.dataclass(frozen=True)
class Pod:
    """A pod that runs, or ran."""

    id: str
    namespace: str
    name: str
    addresses: tuple[str, ...]  # the first is the one that CRI calls the pod's IP
    netns: Netns | None  # None: the host's
    config: Any  # what it was made from

    def __str__(self) -> str:
        return f"{self.namespace}/{self.name}"


class Cri:
    """The CRI service of one containerd; a kubelet's part of making and removing pods."""

    def __init__(self, containerd: Containerd) -> None:
        self._containerd = containerd
        options = (("grpc.default_authority", "localhost"),)
        self._channel = grpc.insecure_channel(f"unix:{containerd.address}", options=options)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._channel.close()

    def call(self, method: str, *, timeout: float = 60, **fields: Any) -> Any:
        """Make one call; waits for a containerd that is just being restarted."""
        service, request, answer = METHODS[method]
        invoke = self._channel.unary_unary(
            f"/runtime.v1.{service}/{method}",
            request_serializer=TYPES[request].SerializeToString,
            response_deserializer=TYPES[answer].FromString,
        )
        return invoke(TYPES[request](**fields), timeout=timeout, wait_for_ready=True)

    def answers(self) -> bool:
        """Say whether the service is there: after a start it reads its state first."""
        try:
            self.call("ListPodSandbox")
        except grpc.RpcError:
            return False
        return True

    def wait_for_image(self, ref: str) -> None:
        """Wait until CRI knows an image that `ctr images import` brought into its namespace."""
        until(
            lambda: self.call("ImageStatus", image={"image": ref}).image.id, within=20, what=f"image {ref} in CRI"
        )

    def run(
        self,
        name: str,
        publish: str | None = None,
        *,
        namespace: str = "shop",
        annotations: Mapping[str, str] | None = None,
        labels: Mapping[str, str] | None = None,
        ports: tuple[dict[str, Any], ...] = (),
        host_network: bool = False,
        host_pid: bool = False,
        attempt: int = 0,
    ) -> Pod:
        """Run a pod's sandbox; `publish` is our annotation, `ports` are port mappings with hostPorts."""
        notes = {**({} if publish is None else {"ctrport.io/publish": publish}), **(annotations or {})}
        modes = {**({"network": NODE} if host_network else {}), **({"pid": NODE} if host_pid else {})}
        config = TYPES["PodConfig"](
            metadata={
                "name": name,
                "namespace": namespace,
                "uid": f"uid-{self._containerd.token}-{name}",
                "attempt": attempt,
            },
            hostname="" if host_network else name[:63],
            port_mappings=ports,
            labels=_pairs(labels or {}),
            annotations=_pairs(notes),
            log_directory=str(self._containerd.directory / "logs"),
            linux={"security_context": {"namespace_options": modes}},
        )
        made = self.call("RunPodSandbox", config=config).pod_sandbox_id
        network = self.call("PodSandboxStatus", pod_sandbox_id=made).status.network
        found = (network.ip, *(each.ip for each in network.additional_ips))
        return Pod(
            id=made,
            namespace=namespace,
            name=name,
            addresses=tuple(each for each in found if each),
            netns=None if host_network else Netns.at(f"/proc/{self.pid(made)}/ns/net", name),
            config=config,
        )

    def pid(self, pod: str) -> int:
        """Give the process id of a pod's pause container."""
        lines = self._containerd.ctr("-n", NAMESPACE, "tasks", "list").splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith(pod))

    def start_container(self, pod: Pod, name: str, image: str, *args: str, **notes: Mapping[str, str]) -> str:
        """Run a container in a pod and give its id; `notes` are its labels and annotations."""
        config = TYPES["ContainerConfig"](
            metadata={"name": name},
            image={"image": image},
            args=args,
            **{kind: _pairs(pairs) for kind, pairs in notes.items()},
        )
        return self.start(pod, config)

    def start(self, pod: Pod, config: Any) -> str:
        """Run a container in a pod from CRI's own description of it, and give its id."""
        made = self.call("CreateContainer", pod_sandbox_id=pod.id, config=config, sandbox_config=pod.config)
        self.call("StartContainer", container_id=made.container_id)
        return str(made.container_id)

    def stop(self, pod: Pod) -> None:
        self.call("StopPodSandbox", pod_sandbox_id=pod.id)

    def remove(self, pod: Pod) -> None:
        """Stop and remove a pod with its containers, as the kubelet does."""
        self.stop(pod)
        self.call("RemovePodSandbox", pod_sandbox_id=pod.id)

    def remove_all(self) -> None:
        """Stop and remove every pod of this containerd."""
        for item in self.call("ListPodSandbox").items:
            for method in ("StopPodSandbox", "RemovePodSandbox"):
                self.call(method, pod_sandbox_id=item.id)

    def network_names(self) -> list[str]:
        """Give the names of the CNI networks that pods are connected to now, as containerd has loaded them."""
        (text,) = [pair.value for pair in self.call("Status", verbose=True).info if pair.key == "cniconfig"]
        return [each["Config"]["Name"] for each in json.loads(text)["Networks"]]


def _pairs(values: Mapping[str, str]) -> list[dict[str, str]]:
    return [{"key": name, "value": value} for name, value in values.items()]
