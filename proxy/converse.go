package proxy

import (
	"errors"
	"os"
	"time"
)

// earlyAnswerWait is how long we wait, after sending a request broke off, for
// an answer that the upstream may have sent before.
const earlyAnswerWait = 100 * time.Millisecond

// converse sends a request over c and reads the head of its answer into in.
// After an error c is the caller's to close; without one it is in's.
func converse(c *upstreamConn, out *outgoing, in *incoming) error {
	if err := c.write(out.head); err != nil {
		return in.lastWords(c, out, brokenBy("send request head", err))
	}
	if out.body != nil {
		return in.receiveAmidUpload(c, out)
	}
	return in.receive(c, out, c.upstream.responseTimeout)
}

// receiveAmidUpload sends the body and reads the head of the answer at the
// same time: an upstream may answer before it has the whole body, or send its
// answer piece by piece as it reads, and may stop reading while nobody reads what it
// sends. Without an error the sending may go on; see incoming.unsent.
//
// The wait for the head is bounded from the end of the upload on. Before, the
// upload itself is: by the time-outs of body and by idleTimeout for each write.
func (in *incoming) receiveAmidUpload(c *upstreamConn, out *outgoing) error {
	up, err := startUpload(c, out)
	if err != nil {
		return brokenBy("send request body", err)
	}
	in.upload = up
	err = in.receiveFinal(c, out, time.Time{})
	switch {
	case err == nil:
		return nil
	case errors.Is(err, os.ErrDeadlineExceeded):
		return in.receiveAfterUpload(c, out)
	case up.brokeOff(err):
		return up.err
	}
	up.stop()
	return headFault(err, c, 0)
}

// receiveAfterUpload goes on when the upload has ended, well or not.
func (in *incoming) receiveAfterUpload(c *upstreamConn, out *outgoing) error {
	<-in.upload.done
	if err := in.upload.err; err != nil {
		return in.lastWords(c, out, err)
	}
	return in.receive(c, out, c.upstream.responseTimeout)
}

// lastWords looks for an answer that the upstream sent before sending to it
// failed with sendErr.
func (in *incoming) lastWords(c *upstreamConn, out *outgoing, sendErr error) error {
	if in.receive(c, out, min(c.upstream.responseTimeout, earlyAnswerWait)) != nil {
		return sendErr
	}
	in.early, in.reuse = true, false
	return nil
}
