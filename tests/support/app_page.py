"""Drives the app's pages in headless Chromium as a user does, and holds a run at a window as long as a test asks."""

import threading

from support import jobs

from wanvideo.app.queue import Task

PLAYED = """async () => {
    let video;
    while (!((video = document.querySelector('#video video'))?.readyState > 1))
        await new Promise((done) => setTimeout(done, 50));
    video.muted = true;
    await video.play();
    while (!(video.currentTime > 0)) await new Promise((done) => setTimeout(done, 50));
    return [video.videoWidth, Math.round(video.duration * 25)];
}"""
MOST_BYTES = 10**6  # of an upload
WAIT_MS = 180_000  # a machine that runs other tests too


class Gate:
    """Lets steps of runs through until the window at which it holds them; a cancelled run goes on to its end."""

    def __init__(self, monkeypatch):
        self.window = None
        self._opened = threading.Event()
        report = Task.report

        def held(task, step):
            report(task, step)
            while self.window is not None and step.window_index >= self.window:
                task.check()
                if self._opened.wait(0.02):
                    break

        monkeypatch.setattr(Task, "report", held)

    def hold(self, window):
        self.window = window
        self._opened.clear()

    def open(self):
        self.window = None
        self._opened.set()


class AppPage:
    """One user: a browser profile of its own."""

    def __init__(self, browser, address, context=None):
        self.context = context or browser.new_context(viewport={"width": 1400, "height": 1200})
        self.page = self.context.new_page()
        self.page.set_default_timeout(WAIT_MS)
        self.errors = []
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.goto(address)
        self.page.locator("#runs p, #runs table").first.wait_for()  # filled in by the server: the page is alive

    def upload(self, field, path):
        self.page.locator(f"#{field} input[type=file]").set_input_files(path)
        self.page.locator(f"#{field} .file-preview").wait_for()

    def fill(self, folder, prompt="She talks.", **sound):
        self.upload("picture", jobs.picture(folder, 96, 96))
        self.page.locator("#seen img").wait_for()
        self.upload("sound-1", jobs.speech(folder, **sound))
        self.page.locator("#played-1 audio").wait_for()
        self.page.locator("#prompt textarea").fill(prompt)

    def choose(self, field, text):
        self.page.locator(f"#{field}").get_by_text(text, exact=True).click()

    def click(self, name):
        self.page.click(f"#{name}")

    def until(self, state):
        """Wait until the task is in this state; what the page says is wrong ends that."""
        wrong = self.page.locator(".toast-body.error")
        self.page.locator(f"#status [data-state={state}]").or_(wrong).first.wait_for(state="attached")
        assert not wrong.count(), wrong.inner_text()

    def text(self, name):
        return self.page.inner_text(f"#{name}")

    def shows(self, name, text):
        self.page.locator(f"#{name}").filter(has_text=text).wait_for()

    def played(self):
        """Play the video that is there. Returns: its width, and its number of frames at 25 a second."""
        return self.page.evaluate(PLAYED)

    def choose_run(self, name):
        self.page.locator("#chosen input").fill(name)
        self.page.keyboard.press("Enter")

    def paint(self, *places):
        """For each person a stroke at a place across the picture, 0 to 1, on the layer of that number."""
        canvas = self.page.locator("#painted canvas").first
        canvas.wait_for()
        self.page.wait_for_function("document.querySelector('#painted canvas').getBoundingClientRect().width > 100")
        for number, place in enumerate(places, 1):
            self.page.locator("#painted .layer-title-button").click()
            self.page.locator("#painted li button", has_text=str(number)).click()
            box = canvas.bounding_box()
            across, down = box["x"] + box["width"] * place, box["y"] + box["height"] / 2
            self.page.mouse.move(across, down)
            self.page.mouse.down()
            self.page.mouse.move(across + 12, down + 12, steps=4)
            self.page.mouse.up()
            self.page.wait_for_timeout(300)  # the editor hands its layers on a moment later

    def screenshot(self, path):
        self.page.screenshot(path=path, full_page=True)
