package kafka

import (
	"errors"
	"fmt"
	"sync"

	"github.com/IBM/sarama"
)

// coordination is a client whose requests to the coordinator of its group have a connection
// of their own, as in Kafka's own client. sarama sends them on the connection that it reads
// from, and a broker answers the requests of a connection one after the other. So a
// heartbeat, a commit or a join would wait until the read ahead of it has found records or
// has given up, and all other members of the group would wait for it.
type coordination struct {
	sarama.Client

	mu     sync.Mutex
	broker *sarama.Broker
}

// newCoordination connects to a cluster.
func newCoordination(brokers []string, cfg *sarama.Config) (*coordination, error) {
	client, err := sarama.NewClient(brokers, cfg)
	if err != nil {
		return nil, err
	}

	return &coordination{Client: client}, nil
}

// Coordinator implements sarama.Client.
func (c *coordination) Coordinator(group string) (*sarama.Broker, error) {
	found, err := c.Client.Coordinator(group)
	if err != nil {
		return nil, err
	}

	c.mu.Lock()
	defer c.mu.Unlock()

	if c.broker == nil || c.broker.Addr() != found.Addr() {
		if err := c.hangUp(); err != nil {
			return nil, err
		}

		c.broker = sarama.NewBroker(found.Addr())
	}

	// Whoever gets an error from the connection closes it.
	if err := c.broker.Open(c.Config()); err != nil && !errors.Is(err, sarama.ErrAlreadyConnected) {
		return nil, fmt.Errorf("connecting to the coordinator of %s: %w", group, err)
	}

	return c.broker, nil
}

// Close implements sarama.Client.
func (c *coordination) Close() error {
	c.mu.Lock()
	defer c.mu.Unlock()

	return errors.Join(c.hangUp(), c.Client.Close())
}

// hangUp closes the connection to the coordinator, if there is one.
func (c *coordination) hangUp() error {
	if c.broker == nil {
		return nil
	}

	if err := c.broker.Close(); err != nil && !errors.Is(err, sarama.ErrNotConnected) {
		return err
	}

	return nil
}
