"""All words of the pages, once for each language."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Texts:
    """Words of one page. Those with {} are filled in."""

    language: str
    path: str
    title: str
    intro: str
    picture: str
    video: str
    reference_kind: str
    prompt: str
    negative_prompt: str
    people: str
    speech: str
    files: str
    spoken: str
    sound: str
    voice: str
    text: str
    text_hint: str
    placement: str
    together: str
    in_turn: str
    regions: str
    no_regions: str
    boxes: str
    masks: str
    paint: str
    paint_hint: str
    person: str
    preset: str
    no_preset: str
    advanced: str
    advanced_hint: str
    size: str
    seconds: str
    steps: str
    seed: str
    text_guide: str
    audio_guide: str
    shift: str
    scheduler: str
    motion: str
    teacache: str
    color: str
    as_preset: str
    plan: str
    run: str
    cancel: str
    result: str
    runs: str
    run_columns: tuple[str, ...]
    refresh: str
    chosen_run: str
    watch: str
    resume: str
    no_runs: str
    states: tuple[tuple[str, str], ...]
    waits: str
    progress: str
    left: str
    grows: str
    wrong: str
    no_task: str
    keep: str
    keep_hint: str
    all_new: str
    mouths: str
    painted_only: str
    source_end: str
    feather: str
    scenes: str
    window: str
    apg: str
    rest: str
    prepares: str
    drift: str
    source_ends: tuple[str, ...]

    def state(self, name: str) -> str:
        """What a state of a task or a run is called."""
        return dict(self.states)[name]


ENGLISH = Texts(
    language="English", path="", title="Talking Video",
    intro="A picture or a video, and speech: out comes a video of any length whose people speak it.",
    picture="Picture", video="Video", reference_kind="Who is seen", prompt="Prompt: what is seen and how they speak",
    negative_prompt="Negative prompt", people="Persons who speak", speech="Speech", files="Sound files",
    spoken="Text that is spoken", sound="Sound of person {}", voice="Voice of person {}", text="What is said",
    text_hint="With several persons begin each turn with (s1), (s2), (s3).", placement="Several sounds",
    together="all start together", in_turn="one after another", regions="Where each person is",
    no_regions="not said (two: left and right)", boxes="boxes around what is painted", masks="as painted",
    paint="Persons",
    paint_hint="Choose a layer (Person 1, 2, 3) at the picture's lower right, and paint roughly over that person.",
    person="Person {}",
    preset="Preset", no_preset="none", advanced="All numbers", advanced_hint="What is empty is as the preset has it.",
    size="Size", seconds="Seconds at most", steps="Steps", seed="Seed (below 0: random)", text_guide="Text guidance",
    audio_guide="Audio guidance", shift="Shift", scheduler="Scheduler", motion="Frames that windows share",
    teacache="TeaCache: skip steps that change little", color="Color correction, 0 to 1", as_preset="as the preset",
    plan="Plan", run="Run", cancel="Cancel", result="Video", runs="Videos and unfinished runs",
    run_columns=("run", "state", "windows", "seconds", "prompt"), refresh="Refresh", chosen_run="Run", watch="Watch",
    resume="Resume", no_runs="There are none yet.",
    states=(
        ("waiting", "waits"), ("running", "running"), ("finished", "finished"), ("cancelled", "cancelled"),
        ("failed", "failed"), ("stopped", "stopped"),
    ),
    waits="{} before it", progress="window {} of {}, step {} of {}", left="about {} s left",
    grows="What is finished can be played while the rest is made.",
    wrong="This did not work", no_task="Nothing runs.",
    keep="What stays of the video",
    keep_hint="“only” keeps the pixels of everything else.",
    all_new="nothing: all is made anew",
    mouths="only mouths are made anew (needs mediapipe)",
    painted_only="only what is painted is made anew",
    source_end="When the video ends",
    feather="Soft edge, pixels",
    scenes="Cut into its scenes (needs scenedetect)",
    window="Frames of a window, 4n + 1",
    apg="APG: adaptive projected guidance",
    rest="Mouths rest in pauses (needs silero-vad)",
    prepares="the models are loaded",
    drift="How colors and sharpness drift from window to window",
    source_ends=("its last picture stays", "it begins again", "it runs backward and forward", "the result ends too"),
)  # fmt: skip

CHINESE = Texts(
    language="中文", path="zh", title="说话视频",
    intro="一张图片或一段视频，加上语音，得到任意长度、人物开口说话的视频。",
    picture="图片", video="视频", reference_kind="画面", prompt="提示词：画面内容与说话方式",
    negative_prompt="负面提示词", people="说话人数", speech="语音", files="声音文件",
    spoken="朗读文字", sound="第 {} 人的声音", voice="第 {} 人的嗓音", text="要说的话",
    text_hint="多人时每段以 (s1)、(s2)、(s3) 开头。", placement="多个声音",
    together="同时开始", in_turn="依次说话", regions="各人的位置",
    no_regions="不指定（两人：左右）", boxes="涂抹处的外框", masks="按涂抹区域",
    paint="人物",
    paint_hint="大致涂抹每个人：先在图片右下角选择图层（第 1 人、第 2 人……），再用画笔涂抹。",
    person="第 {} 人", preset="预设",
    no_preset="无", advanced="全部参数", advanced_hint="留空则按预设。",
    size="尺寸", seconds="最长秒数", steps="步数", seed="种子（小于 0：随机）", text_guide="文本引导",
    audio_guide="音频引导", shift="Shift", scheduler="调度器", motion="窗口重叠帧数",
    teacache="TeaCache：跳过变化小的步", color="颜色校正，0 到 1", as_preset="按预设",
    plan="预估", run="生成", cancel="取消", result="视频", runs="视频与未完成的任务",
    run_columns=("任务", "状态", "窗口", "秒", "提示词"), refresh="刷新", chosen_run="任务", watch="播放",
    resume="继续", no_runs="还没有。",
    states=(
        ("waiting", "等待中"), ("running", "生成中"), ("finished", "已完成"), ("cancelled", "已取消"),
        ("failed", "失败"), ("stopped", "已停止"),
    ),
    waits="前面还有 {} 个", progress="第 {} / {} 个窗口，第 {} / {} 步", left="约剩 {} 秒",
    grows="已完成的部分可以边生成边播放。",
    wrong="未能完成", no_task="当前没有任务。",
    keep="视频保留什么",
    keep_hint="选“仅”时，其余像素保持原样。",
    all_new="不保留：全部重新生成",
    mouths="仅重做嘴部（需 mediapipe）",
    painted_only="仅重做涂抹处",
    source_end="视频结束后",
    feather="边缘过渡（像素）",
    scenes="按镜头切分（需 scenedetect）",
    window="窗口帧数，4n + 1",
    apg="APG：自适应投影引导",
    rest="停顿时闭嘴（需 silero-vad）",
    prepares="正在加载模型",
    drift="各窗口颜色与清晰度的漂移",
    source_ends=("停在最后一帧", "从头循环", "来回播放", "结果也到此结束"),
)  # fmt: skip
