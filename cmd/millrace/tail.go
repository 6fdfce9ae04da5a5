package main

import (
	"fmt"

	"github.com/spf13/cobra"

	"github.com/millracehq/millrace/internal/engine/operate"
)

func newTail(opts *options) *cobra.Command {
	return operation(opts, &cobra.Command{
		Use: "tail TOPIC", Short: "Print the messages on a topic as they arrive, until Ctrl-C",
		Long: `Print the messages on a topic as they arrive, until Ctrl-C; with --json, one object
per line. Consumers still receive every message: the command reads Kafka without a
consumer group, and RabbitMQ through its own queue. On the embedded broker, it streams
the messages that the service at http.addr delivers, and authenticates with http.token
if the service requires it.`,
		Example: `  millrace tail orders.created
  millrace tail user.updated --json`,
	}, func(c *call) error {
		topic := c.args[0]
		if err := c.Operator.KnownTopic(topic); err != nil {
			return err
		}

		write := func(p operate.Passing) error {
			payload := p.Payload
			if p.Base64 != nil {
				payload = fmt.Sprintf("%q", p.Base64)
			}

			_, err := fmt.Fprintf(c.out(), "%s  %s  %s  %s\n", stamp(p.At), oneLine(p.MessageID, 60), oneLine(p.Key, 60), oneLine(payload, 4000))

			return err
		}
		if c.json {
			write = line[operate.Passing](c)
		}

		service, err := c.cfg.HTTP.Client()
		if err != nil {
			return err
		}

		return c.Operator.Tail(c.ctx, service, topic, write)
	})
}
