package config

import (
	"fmt"
	"os"
	"reflect"
	"slices"
	"strings"

	"github.com/knadh/koanf/maps"

	"github.com/millracehq/millrace/internal/engine/postgres"
	"github.com/millracehq/millrace/internal/engine/scrub"
)

// fileSuffix turns the key of a secret into the key of a file that contains it.
// Platforms mount secrets as such files.
const fileSuffix = "_file"

// Secrets returns the keys of all secrets: settings whose type is postgres.Secret, or
// scrub.URL.
func Secrets() []string { return keysOf(reflect.TypeFor[Config](), "") }

func keysOf(t reflect.Type, within string) (keys []string) {
	for field := range t.Fields() {
		key := within + field.Tag.Get("koanf")

		switch {
		case field.Type == reflect.TypeFor[postgres.Secret](), field.Type == reflect.TypeFor[scrub.URL]():
			keys = append(keys, key)
		case field.Type.Kind() == reflect.Struct:
			keys = append(keys, keysOf(field.Type, key+".")...)
		}
	}

	return keys
}

// readSecrets replaces the keys of secret files in one source with the contents of the
// files.
func readSecrets(source map[string]any) error {
	for _, key := range Secrets() {
		path := strings.Split(key, ".")
		parent, name := source, path[len(path)-1]

		if len(path) > 1 {
			parent, _ = maps.Search(source, path[:len(path)-1]).(map[string]any)
		}

		file, set := parent[name+fileSuffix]
		if !set {
			continue
		}

		if _, both := parent[name]; both {
			return fmt.Errorf("%s, %s%s: are both set, expected one of them", key, key, fileSuffix)
		}

		content, err := os.ReadFile(fmt.Sprint(file))
		if err != nil {
			return fmt.Errorf("%s%s: %w", key, fileSuffix, err)
		}

		secret := strings.TrimRight(string(content), "\r\n")
		if secret == "" {
			return fmt.Errorf("%s%s: the file %v is empty, expected a secret", key, fileSuffix, file)
		}

		parent[name] = secret
		delete(parent, name+fileSuffix)
	}

	return nil
}

// secretFiles returns the keys that name secret files.
func secretFiles() []string {
	return postgres.Column(Secrets(), func(key string) string { return key + fileSuffix })
}

// settable returns the names of all keys that a source may set.
func settable() []string {
	keys := secretFiles()
	for key := range Flatten(Default()) {
		keys = append(keys, key)
	}

	slices.Sort(keys)

	return keys
}
