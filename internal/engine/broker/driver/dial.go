package driver

import (
	"context"
	"net"
	"time"
)

// Dialer opens connections for client libraries whose calls take no context.
type Dialer func(network, address string) (net.Conn, error)

// NewDialer returns a dialer whose connections close when ctx ends, which ends any call
// that waits for an answer. timeout bounds connecting and the handshake.
func NewDialer(ctx context.Context, timeout time.Duration) Dialer {
	dialer := net.Dialer{Timeout: timeout}

	return func(network, address string) (net.Conn, error) {
		conn, err := dialer.DialContext(ctx, network, address)
		if err != nil {
			return nil, err
		}

		context.AfterFunc(ctx, func() { _ = conn.Close() })

		return conn, conn.SetDeadline(time.Now().Add(timeout))
	}
}

// Dial implements the interface of sarama's dialers.
func (d Dialer) Dial(network, address string) (net.Conn, error) { return d(network, address) }
