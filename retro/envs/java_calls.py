"""py4j's gateway, without its repeated calls. Import it only if py4j is installed."""

from __future__ import annotations

import logging

from py4j.java_gateway import GatewayClient, GatewayParameters, JavaGateway


class _OneAnswer(GatewayClient):  # type: ignore[misc]
    """Makes every call once, and raises if it fails.

    py4j's own client repeats a call whose answer is lost, which would play an action twice, and writes a traceback to
    the root logger.
    """

    def send_command(self, command: str, retry: bool = True, binary: bool = False) -> str:
        connection = self._get_connection()
        try:
            answer: str = connection.send_command(command)
        except BaseException:
            connection.close(reset=True)  # a late answer must not become that of the next call
            raise
        self._give_back_connection(connection)
        return answer


class _Gateway(JavaGateway):  # type: ignore[misc]
    def _create_gateway_client(self) -> _OneAnswer:
        return _OneAnswer(gateway_parameters=self.gateway_parameters)


def connect(port: int, token: str, timeout_seconds: float) -> JavaGateway:
    """The gateway to a py4j server on this machine.

    A call that fails raises py4j.protocol.Py4JError: Py4JJavaError if Java raised, Py4JNetworkError if no answer came.
    """
    logging.getLogger("py4j").setLevel(logging.CRITICAL)  # the caller reports what failed
    return _Gateway(
        gateway_parameters=GatewayParameters(
            port=port,
            auth_token=token,
            read_timeout=timeout_seconds,
            enable_memory_management=False,  # its finalisers would call processes that have ended
        )
    )
