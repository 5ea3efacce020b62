"""
How Ray Serve chooses a replica for a request: by `server.places`.

Source: Ray 2.60, serve/request_router.py
"""
from ray.serve.request_router import RequestRouter

from qwen_mindspore.server.places import places_of

__all__ = ["StickyRouter"]


class StickyRouter(RequestRouter):
    """Chooses by the Places of its application, in the process of the front. A request's first argument is its Call."""

    def update_replicas(self, replicas):
        """Ray's: which replicas are up, whenever that changes. One is told at first without its number."""
        super().update_replicas(replicas)
        places_of(self.app_name).up = {replica.replica_id.unique_id: replica.replica_metadata["number"]
                                       for replica in replicas if "number" in replica.replica_metadata}

    def on_replica_actor_died(self, replica_id):
        """Ray's: seen by a call, before the cluster has told it."""
        super().on_replica_actor_died(replica_id)
        places = places_of(self.app_name)
        places.up = {id: number for id, number in places.up.items() if id != replica_id.unique_id}

    async def choose_replicas(self, candidate_replicas, pending_request=None):
        """Ray's: ranks of replicas; the next one is tried where the first is gone."""
        if pending_request is None:
            return [candidate_replicas]
        pending_request.routing_context.should_backoff = True
        there = {replica.replica_id.unique_id: replica for replica in candidate_replicas}
        return [[there[id]] for id in places_of(self.app_name).order(pending_request.args[0]) if id in there]
