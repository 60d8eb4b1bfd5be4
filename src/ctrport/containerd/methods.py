"""The one table of containerd methods that ctrport calls: path, request, response, unary or stream.

Paths are containerd's and the same from 1.6 to 2.x. They are written out because our messages have a package
of their own (see proto/ctrport/containerd/pb/api.proto); generated service stubs would add nothing to them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Generic, TypeVar

from google.protobuf.empty_pb2 import Empty

from ctrport.containerd.pb import api_pb2 as api
from ctrport.containerd.pb import events_pb2 as ev

if TYPE_CHECKING:
    from google.protobuf.message import Message

Q = TypeVar("Q", bound="Message")
R = TypeVar("R", bound="Message")


@dataclass(frozen=True, slots=True)
class Method(Generic[Q, R]):
    """A method of a containerd service; `stream` when the server answers with any number of responses."""

    path: str
    request: type[Q]
    response: type[R]
    stream: bool = False

    @property
    def name(self) -> str:
        """Service and method without package, such as "Containers/Get"."""
        return self.path.rpartition(".")[2]


_S: Final = "/containerd.services"

GET_CONTAINER: Final = Method(
    f"{_S}.containers.v1.Containers/Get", api.GetContainerRequest, api.GetContainerResponse
)
# Not List: the records of 1,600 containers exceed the 4 MiB that containerd puts into one message.
LIST_CONTAINERS: Final = Method(
    f"{_S}.containers.v1.Containers/ListStream",
    api.ListContainersRequest,
    api.ListContainersItem,
    stream=True,
)
UPDATE_CONTAINER: Final = Method(
    f"{_S}.containers.v1.Containers/Update", api.UpdateContainerRequest, api.UpdateContainerResponse
)
DELETE_CONTAINER: Final = Method(f"{_S}.containers.v1.Containers/Delete", api.DeleteContainerRequest, Empty)

GET_TASK: Final = Method(f"{_S}.tasks.v1.Tasks/Get", api.GetTaskRequest, api.GetTaskResponse)
LIST_TASKS: Final = Method(f"{_S}.tasks.v1.Tasks/List", api.ListTasksRequest, api.ListTasksResponse)
CREATE_TASK: Final = Method(f"{_S}.tasks.v1.Tasks/Create", api.CreateTaskRequest, api.CreateTaskResponse)
START_TASK: Final = Method(f"{_S}.tasks.v1.Tasks/Start", api.StartRequest, api.StartResponse)
WAIT_TASK: Final = Method(f"{_S}.tasks.v1.Tasks/Wait", api.WaitRequest, api.WaitResponse)
CLOSE_IO: Final = Method(f"{_S}.tasks.v1.Tasks/CloseIO", api.CloseIORequest, Empty)
RESIZE_PTY: Final = Method(f"{_S}.tasks.v1.Tasks/ResizePty", api.ResizePtyRequest, Empty)
KILL_TASK: Final = Method(f"{_S}.tasks.v1.Tasks/Kill", api.KillRequest, Empty)
DELETE_TASK: Final = Method(f"{_S}.tasks.v1.Tasks/Delete", api.DeleteTaskRequest, api.DeleteTaskResponse)

LIST_NAMESPACES: Final = Method(
    f"{_S}.namespaces.v1.Namespaces/List", api.ListNamespacesRequest, api.ListNamespacesResponse
)
VERSION: Final = Method(f"{_S}.version.v1.Version/Version", Empty, api.VersionResponse)

GET_IMAGE: Final = Method(f"{_S}.images.v1.Images/Get", api.GetImageRequest, api.GetImageResponse)
READ_CONTENT: Final = Method(
    f"{_S}.content.v1.Content/Read", api.ReadContentRequest, api.ReadContentResponse, stream=True
)
SNAPSHOT_MOUNTS: Final = Method(
    f"{_S}.snapshots.v1.Snapshots/Mounts", api.SnapshotMountsRequest, api.SnapshotMountsResponse
)
REMOVE_SNAPSHOT: Final = Method(f"{_S}.snapshots.v1.Snapshots/Remove", api.RemoveSnapshotRequest, Empty)

SUBSCRIBE: Final = Method(f"{_S}.events.v1.Events/Subscribe", ev.SubscribeRequest, ev.Envelope, stream=True)
PUBLISH: Final = Method(f"{_S}.events.v1.Events/Publish", ev.PublishRequest, Empty)

METHODS: Final[tuple[Method[Any, Any], ...]] = (
    GET_CONTAINER, LIST_CONTAINERS, UPDATE_CONTAINER, DELETE_CONTAINER,
    GET_TASK, LIST_TASKS, CREATE_TASK, START_TASK, WAIT_TASK, CLOSE_IO, RESIZE_PTY, KILL_TASK, DELETE_TASK,
    LIST_NAMESPACES, VERSION,
    GET_IMAGE, READ_CONTENT, SNAPSHOT_MOUNTS, REMOVE_SNAPSHOT,
    SUBSCRIBE, PUBLISH,
)  # fmt: skip
