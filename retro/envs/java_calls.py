"""How a Java process is asked: py4j's gateway, which asks once. Imported only where there is py4j."""

from __future__ import annotations

import logging

from py4j.java_gateway import GatewayClient, GatewayParameters, JavaGateway


class _OneAnswer(GatewayClient):  # type: ignore[misc]
    """Calls that are made once and fail aloud.

    py4j's own client sends a call again when its answer is lost, which would play an action twice, and writes a
    traceback to the root logger.
    """

    def send_command(self, command: str, retry: bool = True, binary: bool = False) -> str:
        connection = self._get_connection()
        try:
            answer: str = connection.send_command(command)
        except BaseException:
            connection.close(reset=True)  # an answer that comes late must not be taken for the next call's
            raise
        self._give_back_connection(connection)
        return answer


class _Gateway(JavaGateway):  # type: ignore[misc]
    def _create_gateway_client(self) -> _OneAnswer:
        return _OneAnswer(gateway_parameters=self.gateway_parameters)


def connect(port: int, token: str, timeout_seconds: float) -> JavaGateway:
    """The gateway to a py4j server of this machine.

    A call that fails raises py4j.protocol.Py4JError: Py4JJavaError if Java raised, Py4JNetworkError if no answer came.
    """
    logging.getLogger("py4j").setLevel(logging.CRITICAL)  # whoever calls tells what failed
    return _Gateway(
        gateway_parameters=GatewayParameters(
            port=port,
            auth_token=token,
            read_timeout=timeout_seconds,
            enable_memory_management=False,  # its finalisers would call processes that have ended
        )
    )
