"""Questions to the control store of a Ray (its GCS), without being a driver of it.

Theory of operation. The store is asked by gRPC, with the engine's certificates and token, so neither a raylet on this
machine nor a driver's process on the head is needed. What it tells of resources is what Ray's own autoscaler goes by.

Rules. Each question has a time limit. An answer that is none becomes a sentence: a store that cannot be reached is an
UnreachableError, certificates or a token that it does not take an AuthError.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from kos_cluster.errors import AuthError, KosError, UnreachableError
from kos_cluster.services.engines.engine import Credentials, Standing

ASK_TIMEOUT_S = 2.0


class Node(NamedTuple):
    """A member of a Ray."""

    id: str  # hex
    alive: bool
    head: bool
    temp_dir: str
    raylet: str  # host:port
    let_go: bool  # it has ended because it was to


class Gcs:
    """A connection. Any thread may use it."""

    def __init__(self, address: str, credentials: Credentials) -> None:
        import grpc
        from ray.core.generated import autoscaler_pb2_grpc, gcs_service_pb2_grpc

        self._address = address
        self._tls = grpc.ssl_channel_credentials(
            credentials.authority.encode(), credentials.key.encode(), credentials.certificate.encode()
        )
        self._token = (("authorization", f"Bearer {credentials.secret}"),)
        self._channel = grpc.secure_channel(address, self._tls)
        self._nodes = gcs_service_pb2_grpc.NodeInfoGcsServiceStub(self._channel)
        self._autoscaler = autoscaler_pb2_grpc.AutoscalerStateServiceStub(self._channel)

    def check(self) -> None:
        """Raises UnreachableError, AuthError."""
        from ray.core.generated import gcs_service_pb2

        self._ask(self._nodes.CheckAlive, gcs_service_pb2.CheckAliveRequest())

    def nodes(self) -> list[Node]:
        """All that it knows, also the dead."""
        from ray.core.generated import gcs_pb2, gcs_service_pb2

        reply = self._ask(self._nodes.GetAllNodeInfo, gcs_service_pb2.GetAllNodeInfoRequest())
        unexpected = ("UNSPECIFIED", "UNEXPECTED_TERMINATION")
        reasons = gcs_pb2.GcsNodeInfo.DESCRIPTOR.fields_by_name["death_info"].message_type.fields_by_name["reason"]
        return [
            Node(
                info.node_id.hex(),
                info.state == gcs_pb2.GcsNodeInfo.ALIVE,
                info.is_head_node,
                info.temp_dir,
                f"{info.node_manager_address}:{info.node_manager_port}",
                info.state != gcs_pb2.GcsNodeInfo.ALIVE
                and reasons.enum_type.values_by_number[info.death_info.reason].name not in unexpected,
            )
            for info in reply.node_info_list
        ]

    def standing(self) -> Standing:
        """How all stands. Of running tasks Ray tells the CPUs in use."""
        state = self._state()
        heads = {node.id for node in self.nodes() if node.head}
        working = {each.node_id.hex() for each in state.node_states if _works(each)}
        return Standing(
            workers=sorted(working - heads),
            waiting=sum(request.count for request in state.pending_resource_requests),
            running=round(sum(_used(each, "CPU") for each in state.node_states)),
            held_bytes=round(sum(_used(each, "object_store_memory") for each in state.node_states)),
        )

    def idlest(self, count: int) -> list[Node]:
        """Workers, those first that hold and run the least."""
        workers = {node.id: node for node in self.nodes() if node.alive and not node.head}
        states = [each for each in self._state().node_states if _works(each) and each.node_id.hex() in workers]
        states.sort(key=lambda each: (_used(each, "CPU"), _used(each, "object_store_memory")))
        return [workers[each.node_id.hex()] for each in states[:count]]

    def drain(self, node: Node, within_s: float) -> None:
        """Have a worker take no more work, and end when it has nothing to do and holds nothing."""
        import time

        from ray.core.generated import autoscaler_pb2

        self._ask(
            self._autoscaler.DrainNode,
            autoscaler_pb2.DrainNodeRequest(
                node_id=bytes.fromhex(node.id),
                reason=autoscaler_pb2.DRAIN_NODE_REASON_PREEMPTION,
                reason_message="KOS lets this worker go",
                deadline_timestamp_ms=round((time.time() + within_s) * 1000),
            ),
        )

    def shut_down(self, node: Node) -> None:
        """Have a worker end now."""
        import grpc
        from ray.core.generated import node_manager_pb2, node_manager_pb2_grpc

        with grpc.secure_channel(node.raylet, self._tls) as channel:
            raylet = node_manager_pb2_grpc.NodeManagerServiceStub(channel)
            self._ask(raylet.ShutdownRaylet, node_manager_pb2.ShutdownRayletRequest(graceful=True))

    def close(self) -> None:
        self._channel.close()

    def _state(self) -> Any:
        from ray.core.generated import autoscaler_pb2

        request = autoscaler_pb2.GetClusterResourceStateRequest()
        return self._ask(self._autoscaler.GetClusterResourceState, request).cluster_resource_state

    def _ask(self, question: Any, request: Any) -> Any:
        import grpc

        try:
            return question(request, timeout=ASK_TIMEOUT_S, metadata=self._token)
        except grpc.RpcError as error:
            raise self._told(error) from error

    def _told(self, error: Any) -> KosError:
        import grpc

        if error.code() is grpc.StatusCode.UNAUTHENTICATED:
            return AuthError(f"The Ray at {self._address} does not take this engine token.", _HINT)
        if "handshake" in error.details().lower():
            return AuthError(f"The Ray at {self._address} and this program refuse each other's certificates.", _HINT)
        return UnreachableError(
            f"The Ray at {self._address} does not answer ({error.code().name}).", "Look with: kos engine list."
        )


_HINT = "It may have been started anew; connect to it again by its name."


def _works(state: Any) -> bool:
    from ray.core.generated import autoscaler_pb2

    return state.status in (autoscaler_pb2.RUNNING, autoscaler_pb2.IDLE)


def _used(state: Any, resource: str) -> float:
    return float(state.total_resources.get(resource, 0.0) - state.available_resources.get(resource, 0.0))
