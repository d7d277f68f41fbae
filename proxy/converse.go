package proxy

import (
	"errors"
	"time"
)

// earlyAnswerWait is how long we wait, after sending a request broke off, for
// an answer that the upstream may have sent before.
const earlyAnswerWait = 100 * time.Millisecond

// converse sends a request over c and reads the head of its answer into in.
// After an error c is the caller's to close; without one it is in's.
func converse(c *upstreamConn, out *outgoing, in *incoming) error {
	sendErr := c.send(out)
	if sendErr != nil && faultOf(sendErr) == faultClient {
		return sendErr
	}
	wait := c.upstream.responseTimeout
	if sendErr != nil && !errors.Is(sendErr, errRefused) {
		wait = min(wait, earlyAnswerWait)
	}
	if err := in.receive(c, out.isHead, wait); err != nil {
		if sendErr != nil {
			return sendErr
		}
		return err
	}
	in.early = sendErr != nil
	in.reuse = in.reuse && !in.early
	return nil
}
