package main

import (
	"bufio"
	"bytes"
	"fmt"
	"io"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/millracehq/millrace/internal/engine/event"
)

// publishBatch is the number of messages that go into the outbox in one transaction.
const publishBatch = 500

// maxLine is the longest line that publish reads. It exceeds the size limit of a
// message, to distinguish a large message from a broken file.
const maxLine = 16 << 20

func newPublish(opts *options) *cobra.Command {
	var (
		file      string
		unchecked bool
	)

	return operation(opts, &cobra.Command{
		Use: "publish TOPIC [JSON]", Short: "Publish one message, or each line of a file",
		Long: `Publish a message to a topic or, with --file, each line of a file (NDJSON); "-" is
standard input. Messages go through the outbox, so nothing is lost while the
service or the broker is down. Messages that their consumer would reject are not
published; each is listed with its line number and the reason.`,
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) == 0 || (len(args) == 2) == (file != "") || len(args) > 2 {
				return event.Errorf(event.Invalid, "expected a topic and either a JSON text or --file")
			}

			return nil
		},
		Example: `  millrace publish orders.created '{"order":{"id":"order_123","product_id":"product_1","quantity":2,"total_amount":99.99}}'
  millrace publish orders.created --file orders.ndjson`,
	}, func(c *call) error {
		p := newPublisher(c, c.args[0])
		p.unchecked = unchecked

		if file == "" {
			return p.single([]byte(c.args[1]))
		}

		return p.lines(file)
	}, yes(&unchecked, "unchecked", "also publish messages that their consumer would reject"), func(_ *options, flags *pflag.FlagSet) {
		flags.StringVarP(&file, "file", "f", "", `read one message per line from this file, "-" for standard input`)
	})
}

// publication is the result of publish, and its JSON output.
type publication struct {
	Topic     string      `json:"topic"`
	Published int         `json:"published"`
	IDs       []string    `json:"ids,omitempty"`
	Rejected  []rejection `json:"rejected"`
}

type rejection struct {
	// Line is 0 for a message from the command line.
	Line  int    `json:"line,omitempty"`
	Error string `json:"error"`
}

type publisher struct {
	*call

	unchecked bool
	pending   []event.Message
	result    publication
}

func newPublisher(c *call, topic string) *publisher {
	return &publisher{call: c, result: publication{Topic: topic, Rejected: []rejection{}}}
}

// single publishes one message and prints its id.
func (p *publisher) single(payload []byte) error {
	if err := p.add(0, payload); err != nil {
		return err
	}

	for _, m := range p.pending {
		p.result.IDs = append(p.result.IDs, m.ID.String())
	}

	return p.finish()
}

// lines publishes each line of a file.
func (p *publisher) lines(name string) error {
	in, err := open(name)
	if err != nil {
		return err
	}
	defer in.Close()

	scanner := bufio.NewScanner(in)
	scanner.Buffer(make([]byte, 0, 64<<10), maxLine)

	for line := 1; scanner.Scan(); line++ {
		payload := scanner.Bytes()
		if line == 1 {
			payload = event.TrimMark(payload) // Windows editors add it
		}

		if payload = bytes.TrimSpace(payload); len(payload) > 0 {
			if err := p.add(line, bytes.Clone(payload)); err != nil {
				return err
			}
		}
	}

	if err := scanner.Err(); err != nil {
		return fmt.Errorf("reading %s: %w (%s published)", name, err, event.Plural(p.result.Published, "message is", "messages are"))
	}

	return p.finish()
}

// add takes one message, or records why it is rejected.
func (p *publisher) add(line int, payload []byte) error {
	key, err := p.Operator.CheckPayload(p.result.Topic, payload)
	if event.KindOf(err) == event.Unknown {
		return err
	}

	m := event.Message{ID: event.NewID(), Topic: p.result.Topic, Key: key, Payload: payload}

	if p.unchecked {
		err = m.Check()
	}

	if err != nil {
		p.result.Rejected = append(p.result.Rejected, rejection{Line: line, Error: err.Error()})

		return nil //nolint:nilerr // the result reports it
	}

	p.pending = append(p.pending, m)
	if len(p.pending) < publishBatch {
		return nil
	}

	return p.flush()
}

func (p *publisher) flush() error {
	if err := p.Operator.Publish(p.ctx, p.pending); err != nil {
		return fmt.Errorf("%w (%s published)", err, event.Plural(p.result.Published, "message is", "messages are"))
	}

	p.result.Published += len(p.pending)
	p.pending = p.pending[:0]

	return nil
}

// finish publishes what is left and prints the result.
func (p *publisher) finish() error {
	if err := p.flush(); err != nil {
		return err
	}

	if err := p.print(p.result, p.write); err != nil {
		return err
	}

	if len(p.result.Rejected) > 0 {
		return errRejected
	}

	return nil
}

func (p *publisher) write(w io.Writer) {
	fmt.Fprintf(w, "published %d to %s", p.result.Published, p.result.Topic)

	for _, id := range p.result.IDs {
		fmt.Fprintf(w, ", id %s", id)
	}

	fmt.Fprintln(w)

	for _, r := range p.result.Rejected {
		if r.Line == 0 {
			fmt.Fprintf(w, "rejected: %s\n", oneLine(r.Error, maxReason))
		} else {
			fmt.Fprintf(w, "rejected line %d: %s\n", r.Line, oneLine(r.Error, maxReason))
		}
	}
}
