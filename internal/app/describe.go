package app

import (
	"embed"
	"fmt"
	"io/fs"
	"path"
	"slices"
	"strings"

	"github.com/millracehq/millrace/internal/engine/asyncapi"
	"github.com/millracehq/millrace/internal/shop/fulfilment"
)

// examples holds examples of the other payloads, and the messages of the FastStream guide.
//
//go:embed testdata/events testdata/guide
var examples embed.FS

// Describe returns the AsyncAPI document of the service, for the brokers that it is
// configured for. It needs no connection.
func (s *Service) Describe() (asyncapi.Document, error) {
	payloads, err := asyncapi.Payloads(s.Router)
	if err != nil {
		return asyncapi.Document{}, err
	}

	source := asyncapi.Source{
		Title: "Millrace", Version: s.Failed.Release(), Payloads: payloads, Examples: map[string][]asyncapi.Example{}, Brokers: s.Brokers,
	}

	for _, files := range []fs.FS{fulfilment.Examples, examples} {
		if err := s.addExamples(source.Examples, files); err != nil {
			return asyncapi.Document{}, err
		}
	}

	return asyncapi.New(source), nil
}

// addExamples adds the examples in files, except those that their consumers refuse: the
// guide has such a message too.
func (s *Service) addExamples(to map[string][]asyncapi.Example, files fs.FS) error {
	topics := s.Operator.Topics()

	return fs.WalkDir(files, ".", func(name string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() {
			return err
		}

		text, err := fs.ReadFile(files, name)
		if err != nil {
			return err
		}

		base := strings.TrimSuffix(path.Base(name), ".json")

		topic := topicOf(base, topics)
		if topic == "" {
			return fmt.Errorf("example %s: not named after a topic", name)
		}

		consumed, _ := s.Router.Topics()
		if slices.Contains(consumed, topic) {
			if _, err := s.Operator.CheckPayload(topic, text); err != nil {
				return nil //nolint:nilerr // shows what is refused
			}
		}

		to[topic] = append(to[topic], asyncapi.Example{Name: base, Payload: text})

		return nil
	})
}

// topicOf returns the topic with the longest name that a file name begins with.
func topicOf(file string, topics []string) (topic string) {
	for _, t := range topics {
		if (file == t || strings.HasPrefix(file, t+".")) && len(t) > len(topic) {
			topic = t
		}
	}

	return topic
}
