package deploy

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/handoverd/handoverd/internal/leak"
)

// A scene is a block of commands of docs/containers.md.
type scene struct {
	heading  string
	commands []string
}

func scenes(t testing.TB) (all []scene) {
	t.Helper()
	text, err := os.ReadFile(filepath.Join("..", "..", "docs", "containers.md"))
	if err != nil {
		t.Fatal(err)
	}
	heading, inside := "", false
	for line := range strings.Lines(string(text)) {
		line = strings.TrimRight(line, "\n")
		switch {
		case strings.HasPrefix(line, "## "):
			heading = line[3:]
		case line == "```sh":
			inside = true
			all = append(all, scene{heading: heading})
		case strings.HasPrefix(line, "```"):
			inside = false
		case inside:
			s := &all[len(all)-1]
			s.commands = append(s.commands, line)
		}
	}
	return all
}

var (
	containerName = regexp.MustCompile(`(^| |:)(blue|green|net)\b`)
	exitCode      = regexp.MustCompile(` # exit code (\d+)$`)
)

// Every command in the document does what the document says. Names, ports and
// the image are those of the test; what asks for health is asked until it is as
// the document has it.
func TestDocumentedCommands(t *testing.T) {
	found := scenes(t)
	if len(found) < 5 {
		t.Fatalf("%d blocks of commands found", len(found))
	}
	for _, s := range found {
		t.Run(s.heading, func(t *testing.T) {
			leak.Check(t)
			name := uniqueName()
			ours := strings.NewReplacer(
				"handoverd:dev", imageTag(t),
				"-v app:", "-v "+name+":",
				"-p 8080:8080", "-p 127.0.0.1::8080",
			)
			t.Cleanup(func() { removeAll(t, name) })
			for _, command := range s.commands {
				perform(t, command, name, ours)
			}
		})
	}
}

// perform runs one command of a scene. What fails is tried again, if it looks at
// what takes its time.
func perform(t *testing.T, command, name string, ours *strings.Replacer) {
	t.Helper()
	want := "0"
	if m := exitCode.FindStringSubmatch(command); m != nil {
		want = m[1]
	}
	text := ours.Replace(exitCode.ReplaceAllString(command, ""))
	if strings.Contains(text, "--network host") { // the machine is shared
		text = strings.ReplaceAll(text, "tcp://:8080", "tcp://127.0.0.1:0")
	}
	text = containerName.ReplaceAllString(text, "${1}"+name+"-$2")
	got, output := "", ""
	once := func() bool {
		out, err := exec.Command("sh", "-c", text).CombinedOutput()
		got, output = "0", string(out)
		if exit := (*exec.ExitError)(nil); errors.As(err, &exit) {
			got = fmt.Sprint(exit.ExitCode())
		} else if err != nil {
			t.Fatal(err)
		}
		return got == want
	}
	if once() {
		return
	}
	if strings.Contains(text, " health") {
		awaitEvery(t, 250*time.Millisecond, "exit code "+want+" of "+text, once)
		return
	}
	t.Fatalf("%s\nexit code %s, want %s:\n%s", text, got, want, output)
}

// removeAll removes the containers and the volume of a scene.
func removeAll(t *testing.T, name string) {
	ids := strings.Fields(mustDocker(t, "ps", "--all", "--quiet", "--filter", "name="+name+"-"))
	for _, id := range ids {
		if t.Failed() {
			if text, err := docker("logs", id); err == nil {
				t.Logf("container %s:\n%s", id, text)
			}
		}
		if _, err := docker("rm", "--force", "--volumes", id); err != nil {
			t.Error(err)
		}
	}
	if _, err := docker("volume", "rm", "--force", name); err != nil {
		t.Error(err)
	}
}
