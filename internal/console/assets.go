package console

import (
	"bytes"
	"crypto/sha256"
	"embed"
	"encoding/hex"
	"net/http"
	"path"
	"time"
)

// files are what pages are made of. htmx.js, sse.js and idiomorph.js are from npm;
// vendor.sum has their versions and checksums.
//
//go:embed assets
var files embed.FS

// assetFile is a file with its type and the version in its address, with which browsers
// keep it.
type assetFile struct {
	data          []byte
	kind, version string
}

var assets = func() map[string]assetFile {
	found := map[string]assetFile{}

	for name, kind := range map[string]string{
		"console.css": "text/css; charset=utf-8", "console.js": "text/javascript; charset=utf-8", "htmx.js": "text/javascript; charset=utf-8",
		"sse.js": "text/javascript; charset=utf-8", "idiomorph.js": "text/javascript; charset=utf-8", "icon.svg": "image/svg+xml",
	} {
		data, err := files.ReadFile("assets/" + name)
		if err != nil {
			panic(err) // the program was built without it
		}

		sum := sha256.Sum256(data)
		found[name] = assetFile{data: data, kind: kind, version: hex.EncodeToString(sum[:6])}
	}

	return found
}()

// asset returns the address of a file.
func asset(name string) string { return prefix + "/assets/" + name + "?v=" + assets[name].version }

func serveAsset(w http.ResponseWriter, r *http.Request) {
	name := path.Base(r.URL.Path)

	file, ok := assets[name]
	if !ok {
		http.NotFound(w, r)

		return
	}

	w.Header().Set("Content-Type", file.kind)

	if r.URL.Query().Get("v") == file.version {
		w.Header().Set("Cache-Control", "public, max-age=31536000, immutable")
	}

	http.ServeContent(w, r, name, time.Time{}, bytes.NewReader(file.data))
}
